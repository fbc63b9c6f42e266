# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Starts a processor: arguments, clients, endpoint, registration. Needs no SGLang, no torch."""

import argparse
import asyncio
import json
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from dynamo.common.configuration.groups.frontend_decoding_args import (
    add_frontend_decoding_arg,
)
from dynamo.common.configuration.groups.kv_router_args import KvRouterArgGroup, KvRouterConfigBase
from dynamo.common.configuration.groups.runtime_args import (
    DynamoRuntimeArgGroup,
    DynamoRuntimeConfig,
)
from dynamo.common.utils.endpoint_types import parse_endpoint_types
from dynamo.common.utils.graceful_shutdown import install_signal_handlers
from dynamo.llm import (
    KvRouter,
    KvRouterConfig,
    ModelInput,
    ModelRuntimeConfig,
    WorkerType,
    lora_name_to_id,
    register_model,
)
from dynamo.runtime import Context

from dynamo.sglang_mm_resume import tracing
from dynamo.sglang_mm_resume.args import BadArgument
from dynamo.sglang_mm_resume.config import ENCODE_MIN_ITEMS, ENCODE_MIN_TOKENS, Settings
from dynamo.sglang_mm_resume.core.messages import Modality
from dynamo.sglang_mm_resume.metrics import publish_metrics
from dynamo.sglang_mm_resume.workers.calls import Workers
from dynamo.sglang_mm_resume.workers.disagg import DECODE_COMPONENT, PrefillDecode
from dynamo.sglang_mm_resume.workers.families import config_in, folder_of, require_served
from dynamo.sglang_mm_resume.workers.frontend_decoding import frontend_decoding
from dynamo.sglang_mm_resume.workers.lifecycle import (
    argument_errors,
    runtime_of,
    serve,
    serve_status,
    wait_for_role,
)
from dynamo.sglang_mm_resume.workers.numbers import Numbers, vocabulary_in
from dynamo.sglang_mm_resume.workers.presence import Presence
from dynamo.sglang_mm_resume.workers.processor import Peers, Processor
from dynamo.sglang_mm_resume.workers.request import Placeholders
from dynamo.sglang_mm_resume.workers.sizes import ImageRule
from dynamo.sglang_mm_resume.workers.status import STATUS_ENDPOINT, answering, described

logger = logging.getLogger(__name__)

COMPONENT = "processor"
#: Fields of config.json that name the token of one item.
_PLACEHOLDER_KEYS: Final[Mapping[Modality, Sequence[str]]] = {
    "image": ("image_token_id", "image_token_index", "media_placeholder_token_id"),
    "video": ("video_token_id",),
}

#: Fields of a model's config.json, such as `video_token_id` and `vision_start_token_id`.
_MEDIA_TOKEN = re.compile(r"(image|video|audio|media|vision)_(\w+_)?token_(id|index)")


class ProcessorConfig(DynamoRuntimeConfig, KvRouterConfigBase):
    """The processor's own arguments beside Dynamo's runtime ones."""

    model_path: str
    served_model_name: str | None = None
    page_size: int = 1
    context_length: int | None = None
    decode_workers: bool = False
    frontend_decoding: bool = False
    lora_adapters: list[str]


def build_parser() -> argparse.ArgumentParser:
    """The processor's parser, without our settings (`dynamo.sglang_mm_resume.args`)."""
    parser = argparse.ArgumentParser(
        prog="python -m dynamo.sglang_mm_resume.processor", allow_abbrev=False
    )
    DynamoRuntimeArgGroup().add_arguments(parser)
    KvRouterArgGroup().add_arguments(parser)
    group = parser.add_argument_group("Model")
    group.add_argument(
        "--model-path",
        "--model",
        required=True,
        help="Local folder or Hugging Face id; the same on every worker.",
    )
    group.add_argument(
        "--served-model-name", default=None, help="Name in the OpenAI API; default: the model path."
    )
    group.add_argument(
        "--page-size",
        type=int,
        default=1,
        help="KV page size in tokens; must equal the engines' --page-size.",
    )
    group.add_argument(
        "--context-length",
        type=int,
        default=None,
        help="Context length in tokens to advertise; default: the model's.",
    )
    group.add_argument(
        "--decode-workers",
        action="store_true",
        help="Decode workers answer; prefill workers run with --disaggregation-mode prefill.",
    )
    add_frontend_decoding_arg(group, env_prefix="SGL")
    group.add_argument(
        "--lora-adapters",
        nargs="+",
        default=[],
        metavar="NAME",
        help="LoRA adapters to serve as models of these names; the engines load them with "
        "--enable-lora and --lora-paths NAME=PATH.",
    )
    return parser


async def worker(settings: Settings, rest: list[str]) -> None:
    """Run until a signal ends it."""
    config = ProcessorConfig.from_cli_args(build_parser().parse_args(rest))
    with argument_errors():
        config.validate()
        config.apply_router_config()
        folder = await folder_of(config.model_path)
        model = config_in(folder)
        require_served(model, config.model_path)
        numbers = Numbers(vocabulary_in(model, config.model_path))
        _require_possible(settings, config)
    placeholders = _placeholders(model, config.model_path)
    runtime, loop = runtime_of(config)
    endpoints: list[Any] = []
    shutdown = asyncio.Event()
    install_signal_handlers(loop, runtime, endpoints, shutdown)
    name = config.served_model_name or config.model_path
    namespace = config.namespace
    generate = runtime.endpoint(f"{namespace}.{COMPONENT}.generate")
    about = runtime.endpoint(f"{namespace}.{COMPONENT}.{STATUS_ENDPOINT}")
    presence = Presence(generate, about, backend=config.discovery_backend)
    endpoints.extend(presence.listings)
    peers = await connect(runtime, namespace)
    decode = await _decode_workers(settings, runtime, namespace) if config.decode_workers else None
    together = _together(settings, peers, decode)
    processor = Processor(
        settings,
        peers,
        placeholders,
        numbers,
        together,
        _media_tokens(model),
        _image_rule(settings, folder),
        _kv_router(settings, config, runtime),
        config.page_size,
    )
    status = described(presence.counted(processor.status), namespace)
    serve_status(runtime, status)
    publish_metrics(generate, status, name, f"{namespace}.{COMPONENT}")
    labels = [("model", name), ("model_name", name)]

    async def list_model() -> None:
        needs = [[WorkerType.Prefill, *([WorkerType.Decode] if decode else [])]]
        await list_card(model_name=name, needs=needs)
        # No worker is listed by an adapter's name, that an adapter could need.
        for adapter in config.lora_adapters:
            await list_card(
                lora_name=adapter,
                base_model_path=config.model_path,
                user_data={"lora_adapter": True, "lora_id": lora_name_to_id(adapter)},
                ignore_weights=True,
            )

    async def list_card(**card: Any) -> None:
        await register_model(
            ModelInput.Tokens,
            parse_endpoint_types(config.endpoint_types),
            generate,
            config.model_path,
            kv_cache_block_size=config.page_size,
            runtime_config=_runtime_config(config),
            custom_template_path=config.custom_jinja_template,
            worker_type=WorkerType.Aggregated,
            **(frontend_decoding() if config.frontend_decoding else {}),
            **card,
        )

    async def register() -> None:
        # Served only when all are live; text goes on without encode workers afterwards.
        for client in (peers.prefill, peers.prefill_transfer):
            await wait_for_role(client, "a prefill")
        engine_encodes = settings.encode_fallback == "local" and decode is None
        for client in () if engine_encodes else (peers.encode, peers.encode_transfer):
            await wait_for_role(client, "an encode")
        for client in (decode.generate, decode.control) if decode else ():
            await wait_for_role(client, "a decode")
        await _warm_up(processor)
        await list_model()
        runtime.set_health_status(True)
        logger.info("processor %s serves %s", generate.connection_id(), name)

    try:
        served = (
            generate.serve_endpoint(
                tracing.serving(processor.generate, "request", for_clients=True),
                graceful_shutdown=True,
                metrics_labels=labels,
            ),
            about.serve_endpoint(answering(status), graceful_shutdown=True, metrics_labels=labels),
        )
        await serve(served, presence.keep(register, list_model), shutdown)
    finally:
        runtime.set_health_status(False)
        await processor.finish()


async def _warm_up(processor: Processor) -> None:
    """A graph that cannot answer is still registered: its requests then say what is wrong."""
    try:
        await processor.warm_up(Context())
    except Exception as error:
        logger.error("warm-up request failed: %s", error)


async def connect(runtime: Any, namespace: str) -> Peers:
    """Clients of the workers of one graph; who is alive is known a moment later."""

    async def client(endpoint: str) -> Any:
        return await runtime.endpoint(f"{namespace}.{endpoint}").client()

    return Peers(
        prefill=await client("prefill.generate"),
        prefill_transfer=await client("prefill.mm_transfer"),
        encode=await client("encoder.generate"),
        encode_transfer=await client("encoder.mm_transfer"),
    )


def _kv_router(settings: Settings, config: ProcessorConfig, runtime: Any) -> KvRouter | None:
    if settings.router_mode != "kv":
        return None
    prefill = runtime.endpoint(f"{config.namespace}.prefill.generate")
    return KvRouter(prefill, config.page_size, KvRouterConfig(**config.kv_router_kwargs()))


async def _decode_workers(settings: Settings, runtime: Any, namespace: str) -> Workers:
    component = f"{namespace}.{DECODE_COMPONENT}"
    return Workers(
        "decode",
        await runtime.endpoint(f"{component}.generate").client(),
        await runtime.endpoint(f"{component}.mm_transfer").client(),
        settings,
    )


def _together(settings: Settings, peers: Peers, decode: Workers | None) -> PrefillDecode | None:
    if decode is None:
        return None
    prefill = Workers("prefill", peers.prefill, peers.prefill_transfer, settings)
    return PrefillDecode(settings, prefill, decode)


def _require_possible(settings: Settings, config: ProcessorConfig) -> None:
    """Raises `ValueError` for settings that this graph cannot follow."""
    for spec in (ENCODE_MIN_TOKENS, ENCODE_MIN_ITEMS):
        if config.decode_workers and spec in settings.engine_encodes:
            raise ValueError(
                f"{spec.label}: a decode worker must know the sizes of pictures, which encode "
                "workers name: leave it out, or leave out --decode-workers"
            )


def _image_rule(settings: Settings, folder: Path) -> ImageRule | None:
    rule = ImageRule.of_model(folder)
    if settings.encode_min_tokens is not None and rule is None:
        raise BadArgument(
            f"{ENCODE_MIN_TOKENS.label}: the options of this model's image processor do not "
            f"say how many tokens a picture has: use {ENCODE_MIN_ITEMS.flag} instead"
        )
    return rule


def _placeholders(model: dict[str, Any], model_path: str) -> Placeholders:
    """The ids of one picture's and one video's placeholder, from the model's own config.json."""
    found: dict[Modality, int] = {}
    for modality, keys in _PLACEHOLDER_KEYS.items():
        ids = [model[key] for key in keys if isinstance(model.get(key), int)]
        if ids:
            found[modality] = ids[0]
    if "image" not in found:
        text = f"{model_path} names no image placeholder in config.json"
        raise BadArgument(f"--model-path: {text}")
    return found


def _media_tokens(model: dict[str, Any]) -> set[int]:
    """Every id that a prompt has because of media: placeholders, and what is around them."""
    return {
        token
        for key, token in model.items()
        if _MEDIA_TOKEN.fullmatch(key) and isinstance(token, int)
    }


def _runtime_config(config: ProcessorConfig) -> ModelRuntimeConfig:
    runtime_config = ModelRuntimeConfig()
    if config.context_length is not None:
        runtime_config.context_length = config.context_length
    runtime_config.tool_call_parser = config.dyn_tool_call_parser
    runtime_config.reasoning_parser = config.dyn_reasoning_parser
    runtime_config.exclude_tools_when_tool_choice_none = config.exclude_tools_when_tool_choice_none
    runtime_config.set_structural_tag(config.structural_tag)
    if config.dyn_default_thinking_mode is not None:
        mode = json.dumps(config.dyn_default_thinking_mode)
        runtime_config.set_engine_specific("default_thinking_mode", mode)
    return runtime_config
