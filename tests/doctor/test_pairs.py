# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""What is made of a pair's figures, and the pictures that are sent."""

import base64
import io

from PIL import Image

from dynamo.sglang_mm_resume.doctor.carrier import Carrier
from dynamo.sglang_mm_resume.doctor.graph import Graph
from dynamo.sglang_mm_resume.doctor.pairs import Moved, judge, left_out, pairs_of, picture
from dynamo.sglang_mm_resume.doctor.report import Outcome, Result
from tests.support.descriptions import silent, worker


def moved(used: Carrier) -> Moved:
    return Moved(
        first_s=0.5,
        again_s=0.0061,
        tokens=1024,
        rounds=2,
        num_bytes=7_340_032,
        write_s=0.002,
        used=used,
    )


def judged(used: Carrier, encode: dict[str, object], prefill: dict[str, object]) -> Result:
    return judge(
        "pair 1", worker("encode", 8, **encode), worker("prefill", 9, **prefill), moved(used)
    )


def test_latency_bandwidth_and_transport_are_told() -> None:
    result = judged(Carrier.CMA, {}, {})
    assert result.outcome is Outcome.OK
    assert result.text.startswith("encode 8 (node-1, pid 1) to prefill 9 (node-1, pid 1): 1,024")
    assert "tokens in 2 rounds: 6.1 ms" in result.text
    assert "500 ms" in result.text
    assert "3.7 GB/s over CMA" in result.text
    assert result.figures["latency_ms"] == 6.1
    assert result.figures["transport"] == "CMA"


def test_tcp_on_one_machine_is_a_fall_back() -> None:
    result = judged(Carrier.TCP, {}, {})
    assert result.outcome is Outcome.WARN
    assert "CMA needs" in result.action


def test_what_keeps_cma_away_is_named_where_it_is_seen() -> None:
    result = judged(Carrier.TCP, {"ucx": {"UCX_TLS": "tcp"}}, {"pid_namespace": "pid:[2]"})
    assert "UCX_TLS=tcp is set on encode 8 (node-1, pid 1)" in result.action
    assert "PID namespaces differ" in result.action


def test_tcp_between_gpus_of_one_machine_misses_cuda_ipc() -> None:
    gpu = {"memory": "VRAM"}
    result = judged(Carrier.TCP, gpu, {**gpu, "pid_namespace": "pid:[2]"})
    assert result.outcome is Outcome.WARN
    assert "PID namespaces differ" in result.action
    assert "cuda_ipc" in result.action


def test_tcp_between_machines_is_what_there_is() -> None:
    assert judged(Carrier.TCP, {}, {"boot_id": "boot-2"}).outcome is Outcome.OK


def test_tcp_between_machines_misses_host_memory_where_a_pool_is_on_a_gpu() -> None:
    result = judged(Carrier.TCP, {"memory": "VRAM"}, {"boot_id": "boot-2"})
    assert result.outcome is Outcome.WARN
    assert "--mm-resume-pool-device cpu" in result.action


def test_tcp_between_machines_with_rdma_is_a_fall_back() -> None:
    device = {"rdma_devices": ["mlx5_0"]}
    both = judged(Carrier.TCP, device, {**device, "boot_id": "boot-2"})
    assert both.outcome is Outcome.WARN
    assert "RDMA" in both.action
    one = judged(Carrier.TCP, device, {"boot_id": "boot-2"})
    assert one.outcome is Outcome.OK


def test_machines_that_do_not_say_who_they_are_are_not_taken_for_one() -> None:
    unknown = {"boot_id": ""}
    assert judged(Carrier.TCP, unknown, unknown).figures["one_machine"] is False


def test_every_pair_of_those_that_answer() -> None:
    workers = (
        worker("encode", 1),
        worker("encode", 2),
        silent("encode", 3),
        worker("prefill", 4),
        worker("prefill", 5),
        worker("processor", 6),
    )
    pairs = pairs_of(Graph("test", workers))
    assert [(e.instance_id, p.instance_id) for e, p in pairs] == [(1, 4), (1, 5), (2, 4), (2, 5)]


def test_pairs_that_are_left_out_are_told() -> None:
    assert left_out(4, 16) == []
    (result,) = left_out(20, 16)
    assert "16 of 20" in result.text


def test_a_picture_has_its_size_and_is_like_no_other() -> None:
    pixels = set()
    for _ in range(3):
        kind, _, data = picture(100).partition(",")
        assert kind == "data:image/png;base64"
        image = Image.open(io.BytesIO(base64.b64decode(data)))
        assert image.size == (100, 100)
        pixels.add(image.tobytes())
    assert len(pixels) == 3


def test_a_tiny_picture_is_one() -> None:
    assert picture(1).startswith("data:image/png;base64,")
