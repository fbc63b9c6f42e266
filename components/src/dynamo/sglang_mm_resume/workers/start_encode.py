# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Starts an encode worker: arguments, tower, pool, NIXL, endpoints, registration."""

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final
from uuid import uuid4

from dynamo.common.utils.graceful_shutdown import install_signal_handlers
from dynamo.llm import ModelInput, ModelType, WorkerType
from dynamo.sglang.args import Config, parse_args
from dynamo.sglang.register import register_model_with_readiness_gate
from PIL import Image

from dynamo.sglang_mm_resume import tracing
from dynamo.sglang_mm_resume.config import Settings
from dynamo.sglang_mm_resume.core.layout import Layout
from dynamo.sglang_mm_resume.metrics import publish_metrics
from dynamo.sglang_mm_resume.transport.nixl_agent import NixlAgent
from dynamo.sglang_mm_resume.transport.writer import Writer
from dynamo.sglang_mm_resume.video_library import INSTALL, can_decode_videos
from dynamo.sglang_mm_resume.workers.encode import EncodeHandler, Receivers
from dynamo.sglang_mm_resume.workers.families import require_served_by
from dynamo.sglang_mm_resume.workers.lifecycle import (
    DrainFirst,
    argument_errors,
    runtime_of,
    serve,
    serve_status,
)
from dynamo.sglang_mm_resume.workers.media import MediaLoader
from dynamo.sglang_mm_resume.workers.pool import make_pool
from dynamo.sglang_mm_resume.workers.presence import Presence
from dynamo.sglang_mm_resume.workers.sglang_encoder import VisionEncoder, max_image_tokens
from dynamo.sglang_mm_resume.workers.status import STATUS_ENDPOINT, answering, described

logger = logging.getLogger(__name__)

COMPONENT = "encoder"
ENGINE_ARGS: Final = ("--enable-multimodal", "--disaggregation-mode", "encode")


async def worker(settings: Settings, rest: list[str]) -> None:
    """Run until a signal ends it."""
    with argument_errors():
        await require_served_by(rest)
        config = await parse_args([*ENGINE_ARGS, *rest])
    dynamo_args = config.dynamo_args
    dynamo_args.frontend_decoding = False  # asked for by the processor, which is the front door
    runtime, loop = runtime_of(dynamo_args)
    endpoints: list[Any] = []
    shutdown = asyncio.Event()
    install_signal_handlers(loop, runtime, endpoints, shutdown)
    encoder = VisionEncoder(config.server_args, settings.thread_pool_size, settings.encode_batch)
    try:
        await _warm_up(encoder)
        await _serve(settings, config, runtime, endpoints, shutdown, encoder)
    finally:
        runtime.set_health_status(False)
        encoder.close()


async def _serve(
    settings: Settings,
    config: Config,
    runtime: Any,
    endpoints: list[Any],
    shutdown: asyncio.Event,
    encoder: VisionEncoder,
) -> None:
    server_args = config.use_resolved_server_args(encoder.server_args)
    if not can_decode_videos():
        logger.warning("compressed videos are refused: %s", INSTALL)
    prefix = f"{config.dynamo_args.namespace}.{COMPONENT}"
    generate = runtime.endpoint(f"{prefix}.generate")
    control = runtime.endpoint(f"{prefix}.mm_transfer")
    about = runtime.endpoint(f"{prefix}.{STATUS_ENDPOINT}")
    layout = Layout(
        model=server_args.served_model_name,
        width=encoder.width,
        dtype=encoder.dtype,
        block_size=settings.block_size,
    )
    longest = max_image_tokens(encoder.image_processor)
    pool = make_pool(settings, layout, longest, encoder.gpus, rows_on_gpu=True)
    threads = ThreadPoolExecutor(settings.thread_pool_size, thread_name_prefix="mm-resume")
    agent = NixlAgent(f"encode-{uuid4().hex}", pool.memory, _ignore_notice)
    await agent.start()
    prefill = await runtime.endpoint(f"{config.dynamo_args.namespace}.prefill.mm_transfer").client()
    receivers = Receivers(
        prefill, agent, layout, generate.connection_id(), settings.bootstrap_timeout_s
    )
    handler = EncodeHandler(
        settings,
        encoder,
        MediaLoader(
            threads,
            layout.fingerprint + encoder.identity,
            settings.bootstrap_timeout_s / 2,
            encoder.video_options,
        ),
        Writer(
            pool.blocks,
            pool.memory,
            agent,
            threads,
            settings.queue_size,
            settings.drain_s,
            settings.checksum,
            settings.embedding_cache,
        ),
        receivers,
    )
    presence = Presence(generate, control, about, backend=config.dynamo_args.discovery_backend)
    endpoints.append(DrainFirst(handler.drain, presence.listings))
    namespace = config.dynamo_args.namespace
    status = described(
        presence.counted(handler.status), namespace, layout, agent.memory_kind, pool.memory.pinned
    )
    serve_status(runtime, status)
    publish_metrics(generate, status, server_args.served_model_name, prefix)
    labels = [("model", layout.model), ("model_name", layout.model)]

    async def list_model() -> None:
        await register_model_with_readiness_gate(
            None,
            generate,
            server_args,
            config.dynamo_args,
            input_type=ModelInput.Tokens,
            output_type=ModelType.Empty,
            worker_type=WorkerType.Encode,
            needs=[[WorkerType.Prefill]],
        )

    async def register() -> None:
        await list_model()
        runtime.set_health_status(True)
        logger.info("encode worker %s is ready", generate.connection_id())

    try:
        served = (
            generate.serve_endpoint(
                tracing.serving(handler.generate, "encode_item"),
                graceful_shutdown=True,
                metrics_labels=labels,
            ),
            control.serve_endpoint(
                tracing.serving(handler.mm_transfer), graceful_shutdown=True, metrics_labels=labels
            ),
            about.serve_endpoint(answering(status), graceful_shutdown=True, metrics_labels=labels),
        )
        kept = asyncio.gather(presence.keep(register, list_model), encoder.lost())
        await serve(served, kept, shutdown)
    finally:
        await handler.close()
        await agent.stop()
        threads.shutdown(wait=False, cancel_futures=True)


async def _warm_up(encoder: VisionEncoder) -> None:
    """One picture through the tower, so that the first of a user is as fast as the second."""
    prepared = await encoder.prepare(Image.new("RGB", (224, 224), "white"))
    await encoder.encode(prepared)


def _ignore_notice(peer: str, payload: bytes) -> None:
    logger.debug("notice from %s ignored: an encode worker expects none", peer)
