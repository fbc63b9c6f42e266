# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""`core/layout.py`: tokens, blocks, bytes, and what peers must agree on (R10)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from dynamo.sglang_mm_resume.core.errors import Reason, Refused
from dynamo.sglang_mm_resume.core.layout import PROTOCOL_VERSION, Layout, blocks_for

OURS = Layout(model="model", width=3584, dtype="bfloat16", block_size=128)


@given(st.integers(0, 10**6), st.integers(1, 1024))
def test_blocks_hold_all_tokens_and_one_less_would_not(num_tokens: int, block_size: int) -> None:
    blocks = blocks_for(num_tokens, block_size)
    assert blocks * block_size >= num_tokens
    assert (blocks - 1) * block_size < num_tokens


@pytest.mark.parametrize(("dtype", "item_bytes"), [("float32", 4), ("bfloat16", 2), ("float16", 2)])
def test_bytes_of_a_token_and_of_a_block(dtype: str, item_bytes: int) -> None:
    layout = Layout(model="m", width=10, dtype=dtype, block_size=3)
    assert (layout.token_bytes, layout.block_bytes) == (10 * item_bytes, 30 * item_bytes)
    assert [layout.blocks_for(n) for n in (0, 1, 3, 4)] == [0, 1, 1, 2]


def test_equal_layouts_are_accepted() -> None:
    OURS.require_same(OURS.model_copy(), "the peer")


@pytest.mark.parametrize(
    ("field", "theirs"),
    [("model", "another"), ("width", 4096), ("dtype", "float16"), ("block_size", 64)],
)
def test_a_mismatch_names_the_field_and_both_values(field: str, theirs: object) -> None:
    with pytest.raises(Refused) as refused:
        OURS.require_same(OURS.model_copy(update={field: theirs}), "encode worker 7")
    assert refused.value.reason is Reason.LAYOUT
    for part in (field, repr(getattr(OURS, field)), repr(theirs), "encode worker 7"):
        assert part in str(refused.value)


def test_every_field_that_differs_is_named() -> None:
    with pytest.raises(Refused, match=r"width is 3584 here and 1 there.*block_size is 128"):
        OURS.require_same(OURS.model_copy(update={"width": 1, "block_size": 2}), "peer")


def test_another_version_is_its_own_reason() -> None:
    theirs = OURS.model_copy(update={"protocol_version": PROTOCOL_VERSION + 1, "width": 1})
    with pytest.raises(Refused) as refused:
        OURS.require_same(theirs, "peer")
    assert refused.value.reason is Reason.VERSION


def test_the_fingerprint_tells_layouts_apart() -> None:
    assert OURS.fingerprint == OURS.model_copy().fingerprint
    others = [{"width": 1}, {"model": "x"}, {"dtype": "float32"}, {"block_size": 1}]
    prints = {OURS.model_copy(update=other).fingerprint for other in others}
    assert len(prints | {OURS.fingerprint}) == 5


@pytest.mark.parametrize(
    "wrong", [{"width": 0}, {"block_size": 0}, {"dtype": "int8"}, {"model": ""}, {"extra": 1}]
)
def test_an_impossible_layout_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Layout.model_validate(OURS.model_dump() | wrong)
