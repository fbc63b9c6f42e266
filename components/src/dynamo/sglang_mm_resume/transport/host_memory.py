# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Host memory that is there before it is needed: the pool from the start, and that of assembled
embeddings once it was used before.

Fresh memory has to be cleared by the kernel first, which takes as long as the copy into it, or
several times as long page by page: 117 MB took 12 ms into memory that was used before, 25 ms into
fresh huge pages, 79 ms into fresh pages of 4 KiB.
"""

import errno
import mmap
import threading
import weakref
from typing import Final, Protocol

import numpy as np
import torch

#: Bytes from which memory is worth keeping. What is smaller, malloc reuses by itself.
WORTH_KEEPING: Final = 2**20
#: A piece of memory serves what needs at least this part of it.
MIN_FIT: Final = 0.9

#: `madvise` of Linux 5.14 and later: have all pages now.
_MADV_POPULATE_WRITE: Final = 23
_PRIVATE: Final = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS


class Pins(Protocol):
    """Makes host memory fast for a GPU (`transport/cuda.py`). Memory that is kept stays so."""

    def pin(self, address: int, num_bytes: int) -> bool: ...

    def unpin(self, address: int) -> None: ...


class HostMemory:
    """Hands out tensors; takes their memory back when the last view of one is gone."""

    def __init__(self, max_kept: int, pins: Pins | None = None) -> None:
        """`max_kept`: bytes that are kept without being used."""
        self._max_kept = max_kept
        self._pins = pins
        self._kept: list[mmap.mmap] = []  # the longest unused first
        # Tensors end in any thread, and garbage collection may end one inside of `_take`.
        self._lock = threading.RLock()

    @property
    def num_kept_bytes(self) -> int:
        with self._lock:
            return sum(len(memory) for memory in self._kept)

    def empty(self, shape: tuple[int, int], dtype: torch.dtype) -> torch.Tensor:
        """A tensor of arbitrary contents."""
        num_bytes = shape[0] * shape[1] * dtype.itemsize
        if num_bytes < WORTH_KEEPING:
            return torch.empty(shape, dtype=dtype)
        memory = self._take(num_bytes) or self._new(num_bytes)
        # The tensor's storage holds this array, and nobody else does: it ends with the storage.
        array = np.frombuffer(memory, np.uint8, num_bytes)
        weakref.finalize(array, self._keep, memory).atexit = False
        return torch.from_numpy(array).view(dtype).view(shape)

    def _new(self, num_bytes: int) -> mmap.mmap:
        memory = _fresh(num_bytes)
        if self._pins is not None:
            self._pins.pin(_address_of(memory), num_bytes)
        return memory

    def _take(self, num_bytes: int) -> mmap.mmap | None:
        with self._lock:
            fitting = [m for m in self._kept if num_bytes <= len(m) <= num_bytes / MIN_FIT]
            if not fitting:
                return None
            best = min(fitting, key=len)
            self._kept.remove(best)
            return best

    def _keep(self, memory: mmap.mmap) -> None:
        with self._lock:
            self._kept.append(memory)
            while self.num_kept_bytes > self._max_kept:
                oldest = self._kept.pop(0)
                if self._pins is not None:
                    self._pins.unpin(_address_of(oldest))
                del oldest  # and with it its pages


def populated(num_bytes: int) -> torch.Tensor:
    """Bytes with all their pages, in huge ones where the kernel has them: peers that write into
    it have fewer pages to look up, too. Raises `OSError` or `MemoryError` if there is not enough.
    """
    memory = _fresh(num_bytes)
    rows = torch.frombuffer(memory, dtype=torch.uint8)
    try:
        memory.madvise(_MADV_POPULATE_WRITE)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        rows.zero_()  # an older kernel
    return rows


def _fresh(num_bytes: int) -> mmap.mmap:
    """Memory that the kernel hands out in huge pages, where it has them."""
    memory = mmap.mmap(-1, num_bytes, flags=_PRIVATE)
    memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


def _address_of(memory: mmap.mmap) -> int:
    return int(np.frombuffer(memory, np.uint8).ctypes.data)
