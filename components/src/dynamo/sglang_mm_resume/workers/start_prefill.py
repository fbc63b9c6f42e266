# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Starts a prefill worker: arguments, engine, pool, NIXL, endpoints, registration."""

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final
from uuid import uuid4

from dynamo.common.constants import DisaggregationMode
from dynamo.llm import ModelInput, ModelType, WorkerType
from dynamo.sglang.health_check import SglangHealthCheckPayload, SglangPrefillHealthCheckPayload
from dynamo.sglang.register import register_model_with_readiness_gate

from dynamo.sglang_mm_resume import tracing
from dynamo.sglang_mm_resume.config import Settings
from dynamo.sglang_mm_resume.core.layout import Layout
from dynamo.sglang_mm_resume.core.receiver import Receiver, ReceiverLimits
from dynamo.sglang_mm_resume.metrics import publish_metrics
from dynamo.sglang_mm_resume.transport.assembler import Assembler
from dynamo.sglang_mm_resume.transport.nixl_agent import NixlAgent
from dynamo.sglang_mm_resume.workers import sglang_engine
from dynamo.sglang_mm_resume.workers.gpus import gpus_of_engine
from dynamo.sglang_mm_resume.workers.lifecycle import (
    Admission,
    DrainFirst,
    serve,
    serve_status,
)
from dynamo.sglang_mm_resume.workers.media import MediaLoader
from dynamo.sglang_mm_resume.workers.pool import Pool, make_pool
from dynamo.sglang_mm_resume.workers.prefill import (
    KvSourceHandler,
    PrefillHandler,
    TransferHandler,
    Writers,
    drain,
    prefill_status,
)
from dynamo.sglang_mm_resume.workers.presence import Presence
from dynamo.sglang_mm_resume.workers.sglang_encoder import max_image_tokens
from dynamo.sglang_mm_resume.workers.start_engine import EngineProcess, run_engine
from dynamo.sglang_mm_resume.workers.status import STATUS_ENDPOINT, answering, described

logger = logging.getLogger(__name__)

COMPONENT = "prefill"

ENGINE_ARGS: Final = (
    "--enable-multimodal",
    # Without it, an engine that gets embeddings of one request and pictures of another in the same
    # batch (--encode-fallback local, --encode-min-*) raises NotImplementedError in its scheduler,
    # and is gone.
    "--enable-adaptive-dispatch-to-encoder",
)


async def worker(settings: Settings, rest: list[str]) -> None:
    """Run until a signal ends it."""
    modes = {DisaggregationMode.AGGREGATED, DisaggregationMode.PREFILL}
    prepare = None if settings.local_vision else sglang_engine.leave_tower_out
    await run_engine(settings, [*ENGINE_ARGS, *rest], COMPONENT, modes, _serve, prepare)


async def _serve(process: EngineProcess) -> None:
    settings, config, runtime = process.settings, process.config, process.runtime
    engine, generate = process.engine, process.generate
    server_args = config.server_args
    namespace = process.namespace
    has_decode_workers = config.serving_mode == DisaggregationMode.PREFILL
    control = runtime.endpoint(f"{namespace}.{COMPONENT}.mm_transfer")
    about = runtime.endpoint(f"{namespace}.{COMPONENT}.{STATUS_ENDPOINT}")

    layout = Layout(
        model=server_args.served_model_name,
        width=sglang_engine.embedding_width(engine),
        dtype=sglang_engine.model_dtype(engine),
        block_size=settings.block_size,
    )
    longest = max_image_tokens(sglang_engine.image_processor(engine))
    pool = make_pool(settings, layout, longest, gpus_of_engine(server_args))
    threads = ThreadPoolExecutor(settings.thread_pool_size, thread_name_prefix="mm-resume")
    writers = Writers(await runtime.endpoint(f"{namespace}.encoder.mm_transfer").client(), settings)

    def on_notice(peer: str, payload: bytes) -> None:
        transfers.on_notice(peer, payload)

    agent = NixlAgent(f"prefill-{uuid4().hex}", pool.memory, on_notice)
    await agent.start()
    receiver = Receiver(pool.blocks, _limits(settings, layout, pool))
    assembler = Assembler(
        receiver,
        pool.memory,
        threads,
        writers.close_transfer,
        agent.expect,
        runtime.set_health_status,
        settings.checksum,
    )
    heartbeat = asyncio.ensure_future(writers.watch(assembler))
    sglang_engine.forget_choices(engine)
    embeddings = sglang_engine.EmbeddingInput(engine)
    await sglang_engine.warm_up(engine, embeddings, layout.width)

    admission = Admission()

    async def leave() -> None:
        await drain(admission, assembler, settings.shutdown_grace_s)

    transfers = TransferHandler(
        layout,
        pool.memory,
        agent,
        assembler,
        admission,
        generate.connection_id(),
        sglang_engine.max_prompt_tokens(engine),
    )
    presence = Presence(generate, control, about, backend=config.dynamo_args.discovery_backend)
    process.shutdown_endpoints[:] = [DrainFirst(leave, presence.listings)]
    media = MediaLoader(
        threads,
        layout.fingerprint,
        settings.bootstrap_timeout_s / 2,
        sglang_engine.video_options(engine),
    )
    handler_class = KvSourceHandler if has_decode_workers else PrefillHandler
    handler = handler_class(
        *process.handler_args,
        assembler=assembler,
        embeddings=embeddings,
        media=media,
        max_local=settings.max_encodes,
        has_tower=settings.local_vision,
        admission=admission,
        refusals=transfers.refusals,
    )
    handler.register_engine_routes(runtime)
    handler.generate_endpoint = presence.listings[0]  # what it takes away while paused stays so

    def status() -> dict[str, Any]:
        state = prefill_status(settings, transfers, assembler, embeddings, writers)
        return {
            **state,
            "content_identity": media.identity,
            "engine_requests": sglang_engine.num_requests(engine),
        }

    counted = described(presence.counted(status), namespace, layout, agent.memory_kind)
    serve_status(runtime, counted)
    publish_metrics(generate, counted, layout.model, f"{namespace}.{COMPONENT}")

    async def list_model() -> None:
        await register_model_with_readiness_gate(
            engine,
            generate,
            server_args,
            config.dynamo_args,
            input_type=ModelInput.Tokens,
            output_type=ModelType.Empty,
            worker_type=WorkerType.Prefill,
            # The gate is hard: with Encode here, text would stop with the last encode worker.
            needs=[[WorkerType.Decode if has_decode_workers else WorkerType.Aggregated]],
        )

    async def register() -> None:
        await list_model()
        runtime.set_health_status(True)
        logger.info("prefill worker %s is ready", generate.connection_id())

    health_check = (
        SglangPrefillHealthCheckPayload if has_decode_workers else SglangHealthCheckPayload
    )
    try:
        endpoints = (
            generate.serve_endpoint(
                tracing.serving(handler.generate, "generate"),
                graceful_shutdown=True,
                metrics_labels=process.labels,
                health_check_payload=health_check(engine).to_dict(),
            ),
            control.serve_endpoint(
                tracing.serving(transfers.mm_transfer),
                graceful_shutdown=True,
                metrics_labels=process.labels,
            ),
            about.serve_endpoint(
                answering(counted), graceful_shutdown=True, metrics_labels=process.labels
            ),
        )
        await serve(endpoints, presence.keep(register, list_model), process.shutdown)
    finally:
        heartbeat.cancel()
        await assembler.close()
        await agent.stop()
        threads.shutdown(wait=False, cancel_futures=True)


def _limits(settings: Settings, layout: Layout, pool: Pool) -> ReceiverLimits:
    return ReceiverLimits(
        wait_timeout_s=settings.bootstrap_timeout_s,
        max_waiting=settings.max_waiting_transfers,
        max_assembled_tokens=settings.max_assembled_mib * 2**20 // layout.token_bytes,
        chunk_blocks=settings.chunk_blocks,
        resumable=pool.resumable,
        settle_interval_s=settings.heartbeat_interval_s,
        max_quarantined_blocks=int(settings.max_quarantined_fraction * pool.blocks.num_blocks),
        adaptive=settings.adaptive_default,
    )
