# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""What prefill and decode workers do alike when they start: arguments, runtime, engine."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import sglang as sgl
from dynamo.common.constants import DisaggregationMode
from dynamo.sglang.args import Config, parse_args
from dynamo.sglang.nixl_telemetry import install_scheduler_process_wrapper
from dynamo.sglang.publisher import (
    handle_non_leader_node,
    set_forward_pass_metrics_worker_id,
    setup_sgl_metrics,
)
from dynamo.sglang.shutdown import install_graceful_shutdown

from dynamo.sglang_mm_resume.config import Settings
from dynamo.sglang_mm_resume.workers.families import require_served_by
from dynamo.sglang_mm_resume.workers.lifecycle import argument_errors, runtime_of
from dynamo.sglang_mm_resume.workers.sglang_engine import (
    keep_features_on_host,
    require_kv_of_its_own,
)


@dataclass(frozen=True, slots=True)
class EngineProcess:
    """A running engine, and what its worker needs to serve it."""

    settings: Settings
    config: Config
    runtime: Any
    engine: Any
    generate: Any  # the endpoint
    handler_args: tuple[Any, ...]
    labels: Any
    shutdown_endpoints: list[Any]
    """To be filled with all endpoints of the worker: a shutdown unregisters them first."""
    shutdown: asyncio.Event
    """Set by a shutdown before it stops them."""

    @property
    def namespace(self) -> str:
        return str(self.config.dynamo_args.namespace)


async def run_engine(
    settings: Settings,
    arguments: list[str],
    component: str,
    modes: set[DisaggregationMode],
    serve: Callable[[EngineProcess], Awaitable[None]],
    prepare: Callable[[Any], None] | None = None,
) -> None:
    """Start the engine and `serve` it until a signal ends that.

    `prepare` gets SGLang's arguments before, and may raise `ValueError` for them.
    """
    with argument_errors():
        await require_served_by(arguments)
        config = await parse_args(arguments)
        if config.serving_mode not in modes:
            raise ValueError(
                f"--disaggregation-mode: {config.serving_mode.value!r} is none of this worker's"
            )
        require_kv_of_its_own(config.server_args)
        keep_features_on_host(config.server_args)
        if prepare is not None:
            prepare(config.server_args)
    # Our handlers serve all that the text path does; this flag would withhold half of it.
    config.dynamo_args.enable_multimodal = False
    config.dynamo_args.component = component
    config.dynamo_args.frontend_decoding = False  # asked for by the processor, the front door
    install_scheduler_process_wrapper()
    shutdown_event = asyncio.Event()
    shutdown_endpoints: list[Any] = []
    runtime, loop = runtime_of(config.dynamo_args)
    run_deferred = install_graceful_shutdown(loop, runtime, shutdown_endpoints, shutdown_event)
    generate = runtime.endpoint(f"{config.dynamo_args.namespace}.{component}.generate")
    set_forward_pass_metrics_worker_id(config.server_args, generate)
    engine = sgl.Engine(server_args=config.server_args)
    server_args = config.use_resolved_server_args(engine.server_args)
    publisher, metrics_task, labels = await setup_sgl_metrics(engine, config, generate)
    if publisher is None:
        raise RuntimeError("Dynamo made no publisher of metrics: embedding workers alone have none")
    try:
        if server_args.node_rank >= 1:
            await handle_non_leader_node(engine, publisher, metrics_task)
            return
        handler_args = (engine, config, publisher, generate, shutdown_event)
        process = EngineProcess(
            settings,
            config,
            runtime,
            engine,
            generate,
            handler_args,
            labels,
            shutdown_endpoints,
            shutdown_event,
        )
        await serve(process)
    finally:
        runtime.set_health_status(False)
        metrics_task.cancel()
        await asyncio.gather(metrics_task, return_exceptions=True)
        engine.shutdown()
        await run_deferred()
