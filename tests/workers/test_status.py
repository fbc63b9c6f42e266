# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""What a worker says of itself, and what it counts of its own bytes."""

import socket
from contextlib import suppress
from pathlib import Path

from dynamo.sglang_mm_resume.core.layout import PROTOCOL_VERSION, Layout
from dynamo.sglang_mm_resume.workers.status import (
    Description,
    Process,
    answering,
    described,
    rdma_devices,
    rdma_sent,
    tcp_sent,
)

LAYOUT = Layout(model="m", width=64, dtype="float32", block_size=16)
SENT = 3_000_000


def sent_so_far() -> int:
    sent = tcp_sent()
    assert sent is not None
    return sent


def test_bytes_that_a_peer_has_are_counted() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = socket.create_connection(server.getsockname())
        theirs, _ = server.accept()
        with ours, theirs:
            before = sent_so_far()
            received = 0
            ours.setblocking(False)
            view = memoryview(bytes(SENT))
            while received < SENT:
                with suppress(BlockingIOError):
                    view = view[ours.send(view) :] if view else view
                received += len(theirs.recv(2**20))
            theirs.sendall(b"done")  # its acknowledgement of the last of ours comes along
            ours.setblocking(True)
            assert ours.recv(4) == b"done"
            assert SENT <= sent_so_far() - before <= SENT + 4


def test_pairs_of_other_sockets_and_files_count_nothing(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, (tmp_path / "file").open("wb") as file:
        before = sent_so_far()
        ours.sendall(b"x" * 1000)
        file.write(b"x" * 1000)
        file.flush()
        assert theirs.recv(1000)
        assert sent_so_far() == before


def test_the_mode_of_a_socket_is_left_alone() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.setdefaulttimeout(1.0)
        try:
            sent_so_far()
        finally:
            socket.setdefaulttimeout(None)
        assert server.getblocking()


def test_words_of_all_rdma_ports_are_counted(tmp_path: Path) -> None:
    assert (rdma_devices(tmp_path), rdma_sent(tmp_path)) == ([], None)
    for device, port, words in (("mlx5_0", 1, 10), ("mlx5_0", 2, 5), ("mlx5_1", 1, 1)):
        counters = tmp_path / device / "ports" / str(port) / "counters"
        counters.mkdir(parents=True)
        (counters / "port_xmit_data").write_text(f"{words}\n")
    assert rdma_devices(tmp_path) == ["mlx5_0", "mlx5_1"]
    assert rdma_sent(tmp_path) == 64


def test_a_process_knows_where_it_is() -> None:
    process = Process.current()
    assert process.host == socket.gethostname()
    assert process.boot_id
    assert process.pid_namespace.startswith("pid:[")
    assert process.versions["ai-dynamo"]


async def test_an_answer_describes_the_worker() -> None:
    status = described(lambda: {"role": "encode", "pool": {"total": 4}}, "prod", LAYOUT, "DRAM")
    (answer,) = [answer async for answer in answering(status)({}, None)]
    said = Description.model_validate(answer)
    assert (said.role, said.namespace, said.memory) == ("encode", "prod", "DRAM")
    assert said.protocol_version == PROTOCOL_VERSION
    assert said.known_layout == LAYOUT
    assert said.pool == {"total": 4}
    assert said.process.host == socket.gethostname()


def test_a_worker_without_a_pool_has_no_layout() -> None:
    state = described(lambda: {"role": "decode"}, "prod")()
    assert "layout" not in state
    said = Description.model_validate({**state, "process": Process.current().model_dump()})
    assert said.known_layout is None


def test_another_release_is_read_as_far_as_it_goes() -> None:
    answer = {
        "role": "encode",
        "namespace": "prod",
        "protocol_version": PROTOCOL_VERSION + 1,
        "layout": {"levels": 3},
        "process": Process.current().model_dump() | {"unheard_of": 1},
        "unheard_of": 2,
    }
    said = Description.model_validate(answer)
    assert said.protocol_version == PROTOCOL_VERSION + 1
    assert said.known_layout is None
