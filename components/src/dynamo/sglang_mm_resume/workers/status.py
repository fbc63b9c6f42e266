# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""What a worker says of itself to whoever finds it in discovery.

Every worker serves the endpoint `mm_status`: the status of its system port, whose address discovery
does not know, and facts of its process, from which others can tell how bytes travel between two of
them. It is no part of the protocol: releases that speak different ones can be asked alike.
"""

import ctypes
import functools
import os
import socket
import struct
from collections.abc import AsyncGenerator, Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dynamo.sglang_mm_resume.core.layout import PROTOCOL_VERSION, Layout

STATUS_ENDPOINT: Final = "mm_status"

#: Distributions whose versions a worker names.
DISTRIBUTIONS: Final = ("dynamo-sglang-mm-resume", "ai-dynamo", "sglang", "nixl", "torch")

#: Where Linux keeps the bytes that a TCP socket has had acknowledged: `tcpi_bytes_acked`, a u64 of
#: `struct tcp_info` (linux/tcp.h, since 4.1).
_TCP_BYTES_ACKED: Final = struct.Struct("<120xQ")
#: `port_xmit_data` counts words of four bytes (Linux, ABI/stable/sysfs-class-infiniband).
_RDMA_WORD_BYTES: Final = 4
_RDMA_DEVICES: Final = Path("/sys/class/infiniband")
_RDMA_FILES: Final = Path("/dev/infiniband")

_LIBC: Final = ctypes.CDLL(None)

Status = dict[str, Any]


class Process(BaseModel):
    """Facts of one process. Namespaces are named by their inodes, as under `/proc/self/ns`.

    `boot_id` is equal on all containers of one machine, and UCX itself tells machines apart by it.
    `rdma_devices` are those that the kernel lists, also to containers that may use none;
    `rdma_files` are the files by which this process reaches them.
    `tcp_sent`: bytes that the peers of its open TCP sockets have acknowledged. `rdma_sent`: bytes
    that the machine's RDMA ports have sent. `None` where the kernel does not say.
    """

    model_config = ConfigDict(frozen=True)

    host: str
    boot_id: str
    pid: int
    pid_namespace: str
    ipc_namespace: str
    ucx: dict[str, str]
    rdma_devices: list[str]
    rdma_files: list[str] = Field(default_factory=list)
    versions: dict[str, str]
    tcp_sent: int | None
    rdma_sent: int | None

    @classmethod
    def current(cls) -> "Process":
        """This process, now. Reads some files below /proc and asks its sockets: a millisecond."""
        return cls(
            host=socket.gethostname(),
            boot_id=_read(Path("/proc/sys/kernel/random/boot_id")),
            pid=os.getpid(),
            pid_namespace=_namespace("pid"),
            ipc_namespace=_namespace("ipc"),
            ucx={k: v for k, v in os.environ.items() if k.startswith("UCX_")},
            rdma_devices=rdma_devices(),
            rdma_files=rdma_files(),
            versions=dict(_versions()),
            tcp_sent=tcp_sent(),
            rdma_sent=rdma_sent(),
        )


class Lengths(BaseModel):
    """Recent embeddings of a prefill worker, in tokens; `p75` is None while they are too few."""

    model_config = ConfigDict(frozen=True)

    count: int = Field(ge=0)
    p75: int | None = None
    max: int | None = None


class Description(BaseModel):
    """What is read of a worker's answer. Fields of other releases are ignored, and may be absent.

    `layout` stays a dict: that of another protocol version may have other fields.
    """

    model_config = ConfigDict(frozen=True)

    role: str
    namespace: str
    protocol_version: int
    layout: dict[str, Any] | None = None
    memory: str | None = None
    pinned: bool | None = None
    process: Process
    pool: dict[str, int] | None = None
    default_blocks: int | None = None
    lengths: Lengths | None = None
    peak_transfers: int = 0
    transfers: dict[str, str] = Field(default_factory=dict)
    totals: dict[str, Any] = Field(default_factory=dict)

    @property
    def known_layout(self) -> Layout | None:
        """The layout, where it is one of this release."""
        try:
            return Layout.model_validate(self.layout)
        except ValidationError:
            return None


def described(
    status: Callable[[], Status],
    namespace: str,
    layout: Layout | None = None,
    memory: str | None = None,
    pinned: bool | None = None,
) -> Callable[[], Status]:
    """A worker's status, with what it is and speaks in front.

    `memory`: where its pool is, by NIXL's names: `DRAM` or `VRAM`; `pinned`: whether a GPU copies
    at full speed into a pool in host memory, `None` where no GPU does.
    """
    identity: Status = {"namespace": namespace, "protocol_version": PROTOCOL_VERSION}
    if layout is not None:
        identity |= {"layout": layout.model_dump(), "memory": memory, "pinned": pinned}
    return lambda: {**identity, **status()}


def answering(
    status: Callable[[], Status],
) -> Callable[[Any, Any], AsyncGenerator[Status, None]]:
    """The handler of the endpoint `mm_status`: one answer, whatever was asked."""

    async def handler(request: Any, context: Any) -> AsyncGenerator[Status, None]:
        yield {**status(), "process": Process.current().model_dump()}

    return handler


def rdma_devices(folder: Path = _RDMA_DEVICES) -> list[str]:
    """Names of the RDMA devices that this process sees."""
    return sorted(path.name for path in folder.glob("*"))


def rdma_files(folder: Path = _RDMA_FILES) -> list[str]:
    """Names of the files by which this process reaches RDMA devices."""
    return sorted(path.name for path in folder.glob("uverbs*"))


def rdma_sent(folder: Path = _RDMA_DEVICES) -> int | None:
    """Bytes that the ports of all RDMA devices have sent; None without a device that counts."""
    counters = list(folder.glob("*/ports/*/counters/port_xmit_data"))
    if not counters:
        return None
    return _RDMA_WORD_BYTES * sum(int(_read(path) or 0) for path in counters)


def tcp_sent() -> int | None:
    """Bytes that left this process through TCP sockets that are still open."""
    try:
        descriptors = os.listdir("/proc/self/fd")
    except OSError:
        return None
    return sum(_acknowledged(int(fd)) for fd in descriptors)


def _acknowledged(fd: int) -> int:
    """Bytes that the peer of a TCP socket has; 0 for any other file, or one closed meanwhile.

    Not by a socket object of Python's, which may change the mode of the socket that it is made for.
    """
    info = ctypes.create_string_buffer(_TCP_BYTES_ACKED.size)
    size = ctypes.c_uint32(_TCP_BYTES_ACKED.size)
    failed = _LIBC.getsockopt(
        fd, socket.IPPROTO_TCP, socket.TCP_INFO, ctypes.byref(info), ctypes.byref(size)
    )
    if failed or size.value < _TCP_BYTES_ACKED.size:
        return 0
    return int(_TCP_BYTES_ACKED.unpack(info.raw)[0])


def _namespace(kind: str) -> str:
    try:
        return os.readlink(f"/proc/self/ns/{kind}")
    except OSError:
        return ""


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


@functools.cache
def _versions() -> Mapping[str, str]:
    found = {}
    for name in DISTRIBUTIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # a processor needs neither SGLang nor torch
            continue
    return found
