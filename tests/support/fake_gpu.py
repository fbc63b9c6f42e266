# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""A GPU for machines without one, as far as copies to and from it go.

Its memory may not be touched by the CPU: whoever does is ended by SIGSEGV, as with a real device
pointer. What is put into a stream is done when the test lets the stream go on, and not before.
"""

from __future__ import annotations

import ctypes
import mmap
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch

from dynamo.sglang_mm_resume.transport import cuda

_LIBC = ctypes.CDLL(None, use_errno=True)
_NONE, _READ_WRITE = 0, 3  # PROT_… of sys/mman.h


class GpuTensor(torch.Tensor):
    """Says that it is on `cuda:1`, and copies in the stream that is current."""

    @property
    def device(self) -> torch.device:
        return torch.device("cuda", 1)

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function is torch.Tensor.copy_:
            target, source = args[:2]
            stream = getattr(_current, "stream", None)
            assert stream is not None, "a copy in no stream of its own waits for the tower"
            stream.put(lambda: _copy(target, source))
            return target
        return super().__torch_function__(function, types, args, kwargs or {})


_current = threading.local()
_memories: list[mmap.mmap] = []  # as long as the process: tests end while tensors live


def rows_on_gpu(rows: torch.Tensor) -> torch.Tensor:
    """A copy of `rows` in memory that the CPU may not touch."""
    memory = mmap.mmap(-1, max(rows.nbytes, mmap.PAGESIZE))
    _memories.append(memory)
    whole = torch.frombuffer(memory, dtype=torch.uint8)[: rows.nbytes]
    moved = whole.view(rows.dtype).view(rows.shape)
    moved.copy_(rows)
    _protect(memory, _NONE)
    return moved.as_subclass(GpuTensor)


def read(tensor: torch.Tensor) -> torch.Tensor:
    """What is in a tensor, wherever it is."""
    with _touchable():
        return tensor.as_subclass(torch.Tensor).clone()


def _copy(target: torch.Tensor, source: torch.Tensor) -> None:
    with _touchable():
        target.as_subclass(torch.Tensor).copy_(source.as_subclass(torch.Tensor))


@contextmanager
def _touchable() -> Iterator[None]:
    for memory in _memories:
        _protect(memory, _READ_WRITE)
    try:
        yield
    finally:
        for memory in _memories:
            _protect(memory, _NONE)


def _protect(memory: mmap.mmap, protection: int) -> None:
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    if _LIBC.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(len(memory)), protection):
        raise OSError(ctypes.get_errno(), "mprotect")


class Stream:
    """Work in order, done by `go_on`."""

    def __init__(self, device: torch.device, priority: int = 0) -> None:
        self.device = device
        self.priority = priority
        self.fault: Exception | None = None
        self.moved = threading.Condition()
        self.num_put = self.num_done = 0
        self._work: list[Callable[[], None]] = []
        gpu_streams.append(self)

    def put(self, work: Callable[[], None]) -> None:
        with self.moved:
            self._work.append(work)
            self.num_put += 1

    def go_on(self) -> None:
        """Do all that is in it."""
        with self.moved:
            for work in self._work:
                work()
            self._work.clear()
            self.num_done = self.num_put
            self.moved.notify_all()


gpu_streams: list[Stream] = []


@contextmanager
def _stream(stream: Stream) -> Iterator[None]:
    _current.stream = stream
    try:
        yield
    finally:
        _current.stream = None


class Event:
    """Of `torch.cuda`."""

    def __init__(self, blocking: bool = False) -> None:
        assert blocking, "a thread that waits would take a core"

    def record(self, stream: Stream) -> None:
        self._stream, self._position = stream, stream.num_put

    def query(self) -> bool:
        if self._stream.fault is not None:
            raise self._stream.fault
        return self._stream.num_done >= self._position

    def synchronize(self) -> None:
        with self._stream.moved:
            assert self._stream.moved.wait_for(self.query, 30.0), "nobody lets the stream go on"


class Driver:
    """libcuda.so.1, by the names of its functions; each call is noted."""

    def __init__(self, **codes: int) -> None:
        """`codes`: what functions return, if not 0."""
        self.calls: list[tuple[str, list[Any]]] = []
        self.ipc_capable = 1
        self._codes = codes

    def __getattr__(self, name: str) -> Callable[..., int]:
        def call(*arguments: Any) -> int:
            self.calls.append((name, [getattr(a, "value", a) for a in arguments]))
            if name == "cuPointerGetAttribute":
                ctypes.cast(arguments[0], ctypes.POINTER(ctypes.c_int))[0] = self.ipc_capable
            return self._codes.get(name, 0)

        return call

    def called(self, name: str) -> list[list[Any]]:
        return [arguments for called, arguments in self.calls if called == name]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> list[Stream]:
    """The streams that are made from here on."""
    gpu_streams.clear()
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", _stream)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    return gpu_streams


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    return use_driver(monkeypatch, Driver())


def use_driver(monkeypatch: pytest.MonkeyPatch, driver: Driver) -> Driver:
    """Have `transport/cuda.py` call this one, in a context that is always there."""
    monkeypatch.setattr(cuda, "_driver", lambda: driver)
    monkeypatch.setattr(cuda, "_context", lambda device: nullcontext())
    return driver


def pool_on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pools on a GPU lie in memory of this one."""

    def allocate(num_bytes: int, device: torch.device) -> torch.Tensor:
        assert device == torch.device("cuda", 1)
        return rows_on_gpu(torch.zeros(num_bytes, dtype=torch.uint8))

    monkeypatch.setattr(cuda, "allocate", allocate)
