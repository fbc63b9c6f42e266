# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""What an engine knows each content by, so that two contents never share KV.

SGLang's prefix cache tells media apart by a value of 30 bits. Two contents with the same value are
found in a second, by anyone who knows how the value is derived. So the value is no name by itself:
it becomes one here, where it is given to one content only, for as long as the engine lives.
"""

from collections import OrderedDict
from hashlib import sha256
from mmap import MAP_ANONYMOUS, MAP_PRIVATE, mmap
from typing import Final

from dynamo.sglang_mm_resume.core.errors import Reason, Refused

#: Names that SGLang tells apart: a pad value is `1_000_000 + hash % 2**30`.
NUM_NAMES: Final = 2**30
#: Contents that are remembered, 250 bytes each: more than an engine has KV of.
REMEMBERED: Final = 2**18


class ContentNames:
    """The names of one engine: numbers from 0 to `num_names`, each given to one content.

    A content gets the name that it wants, which others can derive as well (the KV router does), as
    long as that name was never given to another content. Otherwise it gets a name that was never
    given to anybody: it is not routed by its KV, and its KV is right.

    A content keeps its name while it is among the last `remembered` ones. One that was forgotten
    counts as new, and its old name stays taken, since KV may still be there under it. A bit for
    each name says whether it is taken. The bits are 128 MiB at most, a page at a time as needed.
    """

    def __init__(self, num_names: int = NUM_NAMES, remembered: int = REMEMBERED) -> None:
        self.num_moved = 0
        """Contents that did not get the name that they wanted."""
        self._num_names = num_names
        self._remembered = remembered
        self._names: OrderedDict[bytes, int] = OrderedDict()
        self._taken = mmap(-1, -(-num_names // 8), flags=MAP_PRIVATE | MAP_ANONYMOUS)
        self._next = 0  # where the search for a free name goes on

    def __len__(self) -> int:
        """Contents that are remembered."""
        return len(self._names)

    def name_of(self, content: str, wanted: int) -> int:
        """The name of a content. `content` tells it from all others, `wanted` need not.

        Raises `Refused` where all names are taken.
        """
        key = sha256(content.encode()).digest()  # of one size, whatever a caller makes of it
        name = self._names.get(key)
        if name is None:
            name = self._names[key] = self._new(wanted % self._num_names)
            if len(self._names) > self._remembered:
                self._names.popitem(last=False)
        else:
            self._names.move_to_end(key)
        return name

    def _new(self, wanted: int) -> int:
        name = wanted
        if self._is_taken(wanted):
            name = self._free()
            self.num_moved += 1
        self._taken[name // 8] |= 1 << name % 8
        return name

    def _free(self) -> int:
        """The next name that is not taken. Each name is looked at once in an engine's life."""
        while self._next < self._num_names:
            name = self._next
            self._next += 1
            if not self._is_taken(name):
                return name
        raise Refused(
            Reason.OVERLOADED,
            f"all {self._num_names} names of media in this engine's KV cache are taken: "
            "restart this worker",
        )

    def _is_taken(self, name: int) -> bool:
        return bool(self._taken[name // 8] & 1 << name % 8)
