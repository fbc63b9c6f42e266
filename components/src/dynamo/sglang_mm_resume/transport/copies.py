# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Copies between rows and blocks, wherever the two are.

Between two pieces of host memory a copy has ended when it returns. With a GPU on either side it is
only begun: NIXL knows nothing of CUDA's streams, so whoever hands bytes to it asks first whether
the copy is done.
"""

import ctypes
from collections.abc import Iterable
from typing import Final, Protocol

import torch

#: Of the stream for copies: before the kernels of a vision tower, which fill the GPU.
_PRIORITY: Final = -1


class Copy(Protocol):
    """A copy that was begun. Its tensors must not be freed before it is done."""

    @property
    def done(self) -> bool:
        """Whether `poll` or `wait` has seen its end. Asks nobody, from any thread."""

    def poll(self) -> bool:
        """Has it ended? Raises `RuntimeError` if the GPU reports a fault."""

    def wait(self) -> None:
        """Block this thread until it has ended. Raises like `poll`."""


class _OnHost:
    """It had ended before anybody could ask."""

    done = True

    def poll(self) -> bool:
        return True

    def wait(self) -> None:
        pass


DONE: Final[Copy] = _OnHost()


class _OnGpu:
    """An event behind the last of its pieces."""

    def __init__(self, gpu: torch.device, stream: torch.cuda.Stream) -> None:
        self.done = False
        self._gpu = gpu
        self._event = torch.cuda.Event(blocking=True)  # whoever waits sleeps
        self._event.record(stream)

    # With the GPU as the current one: a call from a thread without any may make a context on the
    # first GPU of the machine, which takes half a GB there.

    def poll(self) -> bool:
        with torch.cuda.device(self._gpu):
            self.done = self.done or self._event.query()
        return self.done

    def wait(self) -> None:
        with torch.cuda.device(self._gpu):
            self._event.synchronize()
        self.done = True


class Copier:
    """Begins copies. Those of one GPU are done in the order in which they were begun."""

    def __init__(self) -> None:
        self._streams: dict[torch.device, torch.cuda.Stream] = {}

    def begin(self, pairs: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> Copy:
        """Copy the second tensor of each pair into the first; either may be on a GPU, or both.

        Sources must be complete: streams of others are not waited for.
        """
        used = None
        for target, source in pairs:
            gpu = _gpu_of(target, source)
            if gpu is None:
                _copy_on_host(target, source)
                continue
            used = (gpu, self._stream(gpu))
            # The device first: leaving a stream of another one would make a context on that.
            with torch.cuda.device(gpu), torch.cuda.stream(used[1]):
                target.copy_(source, non_blocking=True)
        return DONE if used is None else _OnGpu(*used)

    def _stream(self, gpu: torch.device) -> torch.cuda.Stream:
        if gpu not in self._streams:
            # Two threads may make one each at first: either serves.
            self._streams.setdefault(gpu, torch.cuda.Stream(gpu, priority=_PRIORITY))
        return self._streams[gpu]


def _gpu_of(*tensors: torch.Tensor) -> torch.device | None:
    """Where one of them is, unless all are in host memory."""
    return next((tensor.device for tensor in tensors if tensor.device.type != "cpu"), None)


def _copy_on_host(target: torch.Tensor, source: torch.Tensor) -> None:
    """In this thread alone: torch would share the work with threads that have to be waited for,
    which takes longer than the copy itself where cores are busy.
    """
    if not source.is_contiguous():
        target.copy_(source)
        return
    ctypes.memmove(target.data_ptr(), source.data_ptr(), target.nbytes)
