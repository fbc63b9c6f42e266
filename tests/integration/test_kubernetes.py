# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""The whole graph on Dynamo's discovery for Kubernetes, with the environment that the operator
gives to its pods. The API server is a stand-in (tests/support/kubernetes_api.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

from examples.local_stack import MODULES, LocalStack, StackConfig
from tests.support.client import Answer, ask, data_url
from tests.support.deployments import (
    MODEL_NAME,
    READY_DEADLINE_S,
    SMALL_POOL,
    Keeper,
    Model,
)
from tests.support.exact import assert_exact
from tests.support.kubernetes_api import KubernetesApi
from tests.support.oracle import Oracle
from tests.support.pictures import patchwork
from tests.support.pod import pod_name
from tests.support.worker_status import get, status, wait_until

pytestmark = pytest.mark.nightly
POD = "tests.support.pod"
QUESTION = "What is this?"
IMAGE = patchwork(840, 12, 9)
SLOW = patchwork(841, 40, 40)
"""6,400 patches: seconds in the tower, then twelve pools' worth of tokens."""
MAX_TOKENS = 8
LONG = 400
SEEN_DEADLINE_S = 60.0
EXIT_DEADLINE_S = 60


@pytest.fixture(scope="module")
def api() -> Iterator[KubernetesApi]:
    with KubernetesApi() as api:
        yield api


@pytest.fixture(scope="module")
def stack(
    api: KubernetesApi,
    keeper: Keeper,
    models: dict[Model, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[LocalStack]:
    """One worker of each role, in pods."""
    keeper.stop()
    folder = tmp_path_factory.mktemp("kubernetes")

    def in_pod(module: str, *args: str) -> tuple[str, ...]:
        return ("--pod-module", module, *args)

    config = StackConfig(
        models["random"],
        MODEL_NAME,
        dtype="float32",
        modules=dict.fromkeys(MODULES, POD),
        frontend_module=POD,
        frontend_args=in_pod("dynamo.sglang_mm_resume.frontend"),
        processor_args=in_pod(MODULES["processor"], *SMALL_POOL.processor),
        encode_args=in_pod(MODULES["encode"], *SMALL_POOL.workers),
        prefill_args=in_pod(MODULES["prefill"], *SMALL_POOL.workers, *SMALL_POOL.prefill),
        env={
            "KUBECONFIG": str(api.write_kubeconfig(folder / "kubeconfig")),
            "DYN_HTTP_GRACEFUL_SHUTDOWN_TIMEOUT_SECS": str(EXIT_DEADLINE_S // 2),
        },
        log_dir=folder,
    )
    with LocalStack(config) as stack:
        api.run((pod_name(url), url) for url in stack.worker_urls.values())
        stack.wait_ready(READY_DEADLINE_S)
        yield stack


def test_it_answers_exactly(stack: LocalStack, oracle: Oracle) -> None:
    assert_exact(_ask(stack), oracle.generate([IMAGE], QUESTION, MAX_TOKENS))


def test_workers_are_in_the_namespace_that_the_operator_gives_them(stack: LocalStack) -> None:
    for url in stack.worker_urls.values():
        assert 'dynamo_namespace="default-graph-0a1b2c3d"' in get(f"{url}/metrics").text


def test_pods_are_ready_and_alive_by_the_operator_s_probes(
    stack: LocalStack, api: KubernetesApi
) -> None:
    for url in stack.worker_urls.values():
        assert api.ready(pod_name(url))
        assert get(f"{url}/live").status_code == 200


def test_a_frontend_that_ends_lets_answers_end(stack: LocalStack) -> None:
    with _asking(stack) as asked:
        assert stack.terminate("frontend", EXIT_DEADLINE_S) == 0
        _is_complete(asked.result(EXIT_DEADLINE_S))
    stack.restart("frontend")
    stack.wait_ready(READY_DEADLINE_S)


def test_a_processor_whose_pod_is_deleted_answers_what_it_has_begun(
    stack: LocalStack, api: KubernetesApi
) -> None:
    with _asking(stack) as asked:
        _delete(stack, api, "processor")
        _is_complete(asked.result(EXIT_DEADLINE_S))
    _start_again(stack, api, "processor")


def test_embeddings_on_their_way_to_a_pod_that_is_deleted_arrive(
    stack: LocalStack, api: KubernetesApi, oracle: Oracle
) -> None:
    """The prefill worker is called for each grant: it has to be listed until it is done."""
    expected = oracle.generate([SLOW], QUESTION, MAX_TOKENS)
    with ThreadPoolExecutor(1) as thread:
        asked = thread.submit(_ask, stack, SLOW)
        assert wait_until(
            lambda: "encoding" in status(stack, "encode")["transfers"].values(), SEEN_DEADLINE_S
        )
        _delete(stack, api, "prefill-0")
        assert_exact(asked.result(EXIT_DEADLINE_S), expected)
    _start_again(stack, api, "prefill-0")
    assert wait_until(lambda: _ask(stack).ok, SEEN_DEADLINE_S)


def _delete(stack: LocalStack, api: KubernetesApi, name: str) -> None:
    """The pod is no ready endpoint of a service any more, and then gets SIGTERM."""
    api.delete(pod_name(stack.worker_urls[name]))
    assert stack.terminate(name, EXIT_DEADLINE_S) == 0


def _start_again(stack: LocalStack, api: KubernetesApi, name: str) -> None:
    api.run([(pod_name(stack.worker_urls[name]), stack.worker_urls[name])])
    stack.restart(name)
    stack.wait_ready(READY_DEADLINE_S)


def _ask(stack: LocalStack, image: Image.Image = IMAGE) -> Answer:
    return ask(stack.base_url, MODEL_NAME, [data_url(image)], QUESTION, MAX_TOKENS)


@contextmanager
def _asking(stack: LocalStack) -> Iterator[Future[Answer]]:
    """A long answer that the engine has begun."""

    def asking() -> Answer:
        return ask(stack.base_url, MODEL_NAME, [], QUESTION, LONG, stream=True, ignore_eos=True)

    with ThreadPoolExecutor(1) as thread:
        asked = thread.submit(asking)
        assert wait_until(lambda: status(stack, "prefill")["engine_requests"] == 1, SEEN_DEADLINE_S)
        yield asked


def _is_complete(answer: Answer) -> None:
    print(f"{answer.num_chunks} chunks in {answer.total_s:.1f} s")
    assert answer.ok, answer.raw[-1:]
    assert answer.usage is not None
    assert answer.usage["completion_tokens"] == LONG
