# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Memory of a GPU, and host memory that a GPU copies at full speed, straight from CUDA's driver.

torch's caching allocator does not serve for a pool: with `expandable_segments:True` its memory has
no legacy CUDA IPC, and UCX then moves every byte through the host without saying so. The driver's C
interface is called through ctypes: it is the same in every release, its Python bindings are not.
"""

import ctypes
import logging
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, Final

import torch

logger = logging.getLogger(__name__)

#: `CUpointer_attribute` and `CU_MEMHOSTREGISTER_…` of cuda.h.
_IS_LEGACY_CUDA_IPC_CAPABLE: Final = 10
_PORTABLE: Final = 1


class CudaError(RuntimeError):
    """The driver refused a call; the text has the name of the call and its error code."""


def allocate(num_bytes: int, device: torch.device) -> torch.Tensor:
    """Bytes of a GPU, `(num_bytes,)` in uint8, which return to it with the last view of them.

    Raises `CudaError`.
    """
    with _context(device):
        address = ctypes.c_uint64()
        _call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(num_bytes))
        memory = _Bytes(address.value, num_bytes)
        weakref.finalize(memory, _free, memory.address, device).atexit = False
        return torch.as_tensor(memory, device=device)


def is_ipc_capable(tensor: torch.Tensor) -> bool:
    """Can other processes map the memory of `tensor` (legacy CUDA IPC, UCX's `cuda_ipc`)?"""
    found = ctypes.c_uint64()  # the driver writes an int into it
    with _context(tensor.device):
        _call(
            "cuPointerGetAttribute",
            ctypes.byref(found),
            ctypes.c_int(_IS_LEGACY_CUDA_IPC_CAPABLE),
            ctypes.c_uint64(tensor.data_ptr()),
        )
    return bool(found.value)


class Pinning:
    """Page-locks host memory for copies of one GPU. Where the driver refuses, copies are slower."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pinned: set[int] = set()

    def pin(self, address: int, num_bytes: int) -> bool:
        """Takes tens of milliseconds for 100 MB. False, and a line in the log, if refused."""
        try:
            with _context(self._device):
                _call(
                    "cuMemHostRegister_v2",
                    ctypes.c_void_p(address),
                    ctypes.c_size_t(num_bytes),
                    ctypes.c_uint(_PORTABLE),
                )
        except CudaError as error:
            mib = num_bytes / 2**20
            logger.warning("%.0f MiB of host memory cannot be pinned for the GPU: %s", mib, error)
            return False
        self._pinned.add(address)
        return True

    def unpin(self, address: int) -> None:
        """Before the memory is returned; what was not pinned is fine."""
        if address not in self._pinned:
            return
        self._pinned.discard(address)
        try:
            with _context(self._device):
                _call("cuMemHostUnregister", ctypes.c_void_p(address))
        except CudaError as error:  # the process shuts down, or the GPU is lost
            logger.debug("host memory stays pinned: %s", error)


class _Bytes:
    """What torch makes a tensor of, and keeps for as long as that has views."""

    def __init__(self, address: int, num_bytes: int) -> None:
        self.address = address
        self.__cuda_array_interface__: dict[str, Any] = {
            "shape": (num_bytes,),
            "typestr": "|u1",
            "data": (address, False),
            "version": 3,
        }


def _free(address: int, device: torch.device) -> None:
    try:
        with _context(device):
            _call("cuMemFree_v2", ctypes.c_uint64(address))
    except CudaError as error:  # nobody is left who could do something about it
        logger.debug("GPU memory is not returned: %s", error)


@contextmanager
def _context(device: torch.device) -> Iterator[None]:
    """The device's primary context, current in this thread: without one the driver refuses."""
    with torch.cuda.device(device):
        torch.empty(1, device=device)  # makes it, where nobody has yet
        yield


@cache
def _driver() -> ctypes.CDLL:
    return ctypes.CDLL("libcuda.so.1")


def _call(name: str, *arguments: Any) -> None:
    """Raises `CudaError` unless the driver returns CUDA_SUCCESS."""
    code = getattr(_driver(), name)(*arguments)
    if code != 0:
        raise CudaError(f"{name}: CUDA error {code}")
