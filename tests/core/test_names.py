# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""`core/names.py`: a name is given to one content only, whatever is forgotten meanwhile."""

from collections import OrderedDict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo.sglang_mm_resume.core.errors import Reason, Refused
from dynamo.sglang_mm_resume.core.names import NUM_NAMES, ContentNames

MANY = 64
"""Names, and at most as many requests: they do not run out."""


def test_a_content_has_the_name_that_it_wants_and_keeps_it() -> None:
    names = ContentNames()
    assert [names.name_of("red", 2**64 - 1) for _ in range(2)] == [NUM_NAMES - 1] * 2
    assert (names.num_moved, len(names)) == (0, 1)


def test_another_content_that_wants_the_same_name_gets_another() -> None:
    names = ContentNames()
    red, blue = (names.name_of(content, 7) for content in ("red", "blue"))
    assert red == 7 != blue
    assert [names.name_of(content, 7) for content in ("blue", "red")] == [blue, red]
    assert names.num_moved == 1


def test_a_name_stays_taken_when_its_content_was_forgotten() -> None:
    names = ContentNames(remembered=1)
    first = [names.name_of(content, 7) for content in ("red", "blue", "red", "blue")]
    assert len({*first}) == 4
    assert len(names) == 1


def test_what_is_used_again_is_remembered_longer() -> None:
    names = ContentNames(remembered=2)
    red, blue = names.name_of("red", 1), names.name_of("blue", 2)
    assert names.name_of("red", 1) == red
    names.name_of("green", 3)
    assert names.name_of("red", 1) == red
    assert names.name_of("blue", 2) != blue


def test_every_name_is_given_before_a_content_is_refused() -> None:
    names = ContentNames(num_names=10)
    assert sorted(names.name_of(f"content {i}", 3) for i in range(10)) == list(range(10))
    for _ in range(2):
        with pytest.raises(Refused, match="restart this worker") as refused:
            names.name_of("one more", 3)
        assert refused.value.reason is Reason.OVERLOADED
    assert names.name_of("content 4", 3) in range(10)


@given(
    requests=st.lists(st.tuples(st.integers(0, 11), st.integers(0, 2**64)), max_size=MANY),
    remembered=st.integers(1, 12),
)
def test_no_two_contents_ever_have_one_name(
    requests: list[tuple[int, int]], remembered: int
) -> None:
    """And a content has one name, as long as it is remembered."""
    names = ContentNames(MANY, remembered)
    owners: dict[int, str] = {}
    last: OrderedDict[str, int] = OrderedDict()
    for number, wanted in requests:
        content = f"content {number}"
        was_free = wanted % MANY not in owners
        name = names.name_of(content, wanted)
        assert 0 <= name < MANY
        assert owners.setdefault(name, content) == content
        if content in last:
            assert name == last[content]
        elif was_free:
            assert name == wanted % MANY
        last[content] = name
        last.move_to_end(content)
        while len(last) > remembered:
            last.popitem(last=False)
    assert len(names) == len(last)
