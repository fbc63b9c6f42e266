# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Starts a decode worker: arguments, engine, endpoints, registration."""

import logging
from collections import Counter
from typing import Any

from dynamo.common.constants import DisaggregationMode
from dynamo.llm import ModelInput, ModelType, WorkerType
from dynamo.sglang.health_check import SglangDisaggHealthCheckPayload
from dynamo.sglang.register import register_model_with_readiness_gate

from dynamo.sglang_mm_resume import tracing
from dynamo.sglang_mm_resume.config import Settings
from dynamo.sglang_mm_resume.metrics import publish_metrics
from dynamo.sglang_mm_resume.workers import sglang_engine
from dynamo.sglang_mm_resume.workers.decode import DecodeHandler, answer_probe, decode_status, drain
from dynamo.sglang_mm_resume.workers.disagg import DECODE_COMPONENT
from dynamo.sglang_mm_resume.workers.lifecycle import Admission, DrainFirst, serve, serve_status
from dynamo.sglang_mm_resume.workers.presence import Presence
from dynamo.sglang_mm_resume.workers.start_engine import EngineProcess, run_engine
from dynamo.sglang_mm_resume.workers.status import STATUS_ENDPOINT, answering, described

logger = logging.getLogger(__name__)

COMPONENT = DECODE_COMPONENT


async def worker(settings: Settings, rest: list[str]) -> None:
    """Run until a signal ends it."""
    arguments = ["--enable-multimodal", "--disaggregation-mode", "decode", *rest]
    await run_engine(settings, arguments, COMPONENT, {DisaggregationMode.DECODE}, _serve)


async def _serve(process: EngineProcess) -> None:
    engine, generate, runtime = process.engine, process.generate, process.runtime
    server_args = process.config.server_args
    control = runtime.endpoint(f"{process.namespace}.{COMPONENT}.mm_transfer")
    about = runtime.endpoint(f"{process.namespace}.{COMPONENT}.{STATUS_ENDPOINT}")
    admission = Admission()
    refusals: Counter[str] = Counter()

    async def leave() -> None:
        await drain(admission, process.settings.shutdown_grace_s)

    presence = Presence(
        generate, control, about, backend=process.config.dynamo_args.discovery_backend
    )
    process.shutdown_endpoints[:] = [DrainFirst(leave, presence.listings)]
    embeddings = sglang_engine.EmbeddingInput(engine)
    await sglang_engine.warm_up(engine, embeddings, width=1)
    handler = DecodeHandler(
        *process.handler_args, embeddings=embeddings, admission=admission, refusals=refusals
    )
    handler.register_engine_routes(runtime)
    handler.generate_endpoint = presence.listings[0]  # what it takes away while paused stays so

    def status() -> dict[str, Any]:
        return decode_status(engine, embeddings, refusals)

    counted = described(presence.counted(status), process.namespace)
    serve_status(runtime, counted)
    publish_metrics(
        generate, counted, server_args.served_model_name, f"{process.namespace}.{COMPONENT}"
    )

    async def list_model() -> None:
        await register_model_with_readiness_gate(
            engine,
            generate,
            server_args,
            process.config.dynamo_args,
            input_type=ModelInput.Tokens,
            output_type=ModelType.Empty,
            worker_type=WorkerType.Decode,
            needs=[[WorkerType.Prefill]],
        )

    async def register() -> None:
        await list_model()
        runtime.set_health_status(True)
        logger.info("decode worker %s is ready", generate.connection_id())

    endpoints = (
        generate.serve_endpoint(
            tracing.serving(handler.generate, "decode"),
            graceful_shutdown=True,
            metrics_labels=process.labels,
            health_check_payload=SglangDisaggHealthCheckPayload(engine).to_dict(),
        ),
        control.serve_endpoint(answer_probe, graceful_shutdown=True, metrics_labels=process.labels),
        about.serve_endpoint(
            answering(counted), graceful_shutdown=True, metrics_labels=process.labels
        ),
    )
    await serve(endpoints, presence.keep(register, list_model), process.shutdown)
