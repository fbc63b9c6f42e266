# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""What the workers use of SGLang and Dynamo, private names included, is still there as expected.

An upgrade that renames one of these fails here, with the name, and not at the first request.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import pytest

from dynamo.sglang_mm_resume.core.names import NUM_NAMES
from dynamo.sglang_mm_resume.workers.sglang_engine import SHARED_KV

Parameters = tuple[str, ...]


@cache
def _mm_encoder() -> Any:
    return import_module("dynamo.sglang._compat").get_mm_encoder_class()


def _get(module: str, path: str) -> Any:
    found: Any = import_module(module)
    for name in path.split("."):
        found = getattr(found, name)
    return found


SGL = "sglang.srt"
# (module, name, parameters that we pass)
CALLABLES: list[tuple[str, str, Parameters]] = [
    (
        f"{SGL}.disaggregation.encoder.server",
        "MMEncoder.__init__",
        ("server_args", "dist_init_method", "rank"),
    ),
    (
        f"{SGL}.disaggregation.encoder.server",
        "MMEncoder._prepare_encode_context",
        ("requests", "modality", "use_global_cache"),
    ),
    (
        f"{SGL}.disaggregation.encoder.server",
        "MMEncoder._compute_embedding",
        ("ctx", "keep_on_gpu"),
    ),
    (
        f"{SGL}.disaggregation.encoder.server",
        "MMEncoder._build_model_mm_items",
        ("mm_feature", "preprocess_result", "indices", "modality"),
    ),
    (
        f"{SGL}.multimodal.processors.base_processor",
        "BaseMultimodalProcessor.get_validated_mm_data",
        ("prompt", "embeddings", "kwargs"),
    ),
    (
        f"{SGL}.multimodal.processors.base_processor",
        "BaseMultimodalProcessor.process_mm_data_async",
        ("image_data", "input_text", "kwargs"),
    ),
    (
        f"{SGL}.entrypoints.engine",
        "Engine.async_generate",
        (
            *("input_ids", "image_data", "sampling_params", "stream"),
            *("bootstrap_host", "bootstrap_port", "bootstrap_room"),
        ),
    ),
    (f"{SGL}.entrypoints.engine", "Engine.shutdown", ()),
    ("dynamo.sglang._compat", "publish_server_args", ("server_args", "role")),
    (
        "dynamo.sglang.request_handlers.multimodal.encode_worker_handler",
        "_install_load_video_passthrough",
        (),
    ),
    (f"{SGL}.plugins", "load_plugins", ()),
    ("dynamo.sglang.args", "parse_args", ("args",)),
    ("dynamo.sglang.args", "Config.use_resolved_server_args", ("server_args",)),
    (
        "dynamo.sglang.register",
        "register_model_with_readiness_gate",
        (
            "engine",
            "generate_endpoint",
            "server_args",
            "dynamo_args",
            "input_type",
            "output_type",
            "worker_type",
            "needs",
        ),
    ),
    (
        "dynamo.sglang.shutdown",
        "install_graceful_shutdown",
        ("loop", "runtime", "endpoints", "shutdown_event"),
    ),
    ("dynamo.sglang.publisher", "setup_sgl_metrics", ("engine", "config", "generate_endpoint")),
    ("dynamo.sglang.publisher", "set_forward_pass_metrics_worker_id", ()),
    ("dynamo.sglang.publisher", "handle_non_leader_node", ("engine", "publisher", "metrics_task")),
    ("dynamo.sglang.nixl_telemetry", "install_scheduler_process_wrapper", ()),
    ("dynamo.sglang.health_check", "SglangHealthCheckPayload.to_dict", ()),
    ("dynamo.sglang.health_check", "SglangPrefillHealthCheckPayload.to_dict", ()),
    ("dynamo.sglang.health_check", "SglangDisaggHealthCheckPayload.to_dict", ()),
    (
        "dynamo.sglang.request_handlers.llm.decode_handler",
        "_raise_if_sglang_error",
        ("finish_reason",),
    ),
    ("dynamo.sglang.request_handlers", "PrefillWorkerHandler.generate", ("request", "context")),
    ("dynamo.sglang.request_handlers", "PrefillWorkerHandler._consume_results", ()),
    (f"{SGL}.managers.schedule_batch", "MultimodalDataItem.set_hash", ("hash_value",)),
    (
        "dynamo.sglang.request_handlers",
        "DecodeWorkerHandler.__init__",
        ("engine", "config", "publisher", "generate_endpoint", "shutdown_event"),
    ),
    ("dynamo.sglang.request_handlers", "DecodeWorkerHandler.generate", ("request", "context")),
    (
        "dynamo.sglang.request_handlers",
        "DecodeWorkerHandler.register_engine_routes",
        ("runtime",),
    ),
    (
        "dynamo.common.utils.runtime",
        "create_runtime",
        ("discovery_backend", "request_plane", "event_plane", "response_plane"),
    ),
    (
        "dynamo.common.utils.graceful_shutdown",
        "install_signal_handlers",
        ("loop", "runtime", "endpoints", "shutdown_event"),
    ),
    ("dynamo.common.utils.endpoint_types", "parse_endpoint_types", ("endpoint_types_str",)),
    ("dynamo.common.utils.token_ids", "normalize_request_token_ids", ("request",)),
    (
        "dynamo.common.utils.prometheus",
        "register_engine_metrics_callback",
        (
            "endpoint",
            "registry",
            "metric_prefix_filters",
            "namespace_name",
            "component_name",
            "endpoint_name",
            "model_name",
        ),
    ),
    ("dynamo.common.backend.health_check", "is_probe", ("request",)),
    ("dynamo.common.http.base", "HttpStatusError.__init__", ("status", "message", "url")),
    ("dynamo.common.http", "fetch_bytes", ("url", "timeout", "policy", "max_bytes")),
    ("dynamo.common.http.media_reference", "max_media_bytes", ()),
    ("dynamo.common.http.url_validator", "validate_url", ("url", "policy")),
    ("dynamo.common.http.url_validator", "UrlValidationPolicy.from_env", ()),
    ("dynamo.common.http.url_validator", "describe_media_source", ()),
]


@pytest.mark.parametrize(
    ("module", "path", "parameters"), CALLABLES, ids=[path for _, path, _ in CALLABLES]
)
def test_callable_takes_what_we_pass(module: str, path: str, parameters: Parameters) -> None:
    signature = inspect.signature(_get(module, path))
    assert set(parameters) <= set(signature.parameters)


ATTRIBUTES: list[tuple[str, str, str]] = [
    (f"{SGL}.disaggregation.encoder.server", "MMEncoder.__init__", "server_args"),
    (f"{SGL}.disaggregation.encoder.server", "MMEncoder.__init__", "preprocessor"),
    (f"{SGL}.disaggregation.encoder.server", "MMEncoder.__init__", "_embedding_dims"),
    (f"{SGL}.disaggregation.encoder.server", "MMEncoder.__init__", "_embedding_dtype"),
    (f"{SGL}.disaggregation.encoder.server", "MMEncoder.__init__", "device"),
    (f"{SGL}.disaggregation.encoder.server", "MMEncoder.__init__", "gpu_id"),
    (
        f"{SGL}.disaggregation.encoder.preprocessor",
        "EncoderPreprocessor.__init__",
        "preproc_executor",
    ),
    (
        f"{SGL}.multimodal.processors.base_processor",
        "BaseMultimodalProcessor.__init__",
        "_processor",
    ),
    (f"{SGL}.multimodal.processors.qwen_vl", "QwenVLImageProcessor.__init__", "mm_tokens"),
    (f"{SGL}.managers.tokenizer_manager", "TokenizerManager", "mm_processor"),
    (f"{SGL}.managers.tokenizer_manager", "TokenizerManager", "rid_to_state"),
    (f"{SGL}.managers.tokenizer_manager", "TokenizerManager", "max_req_input_len"),
    (f"{SGL}.managers.tokenizer_manager", "TokenizerManager", "rid_to_state"),
    (f"{SGL}.managers.tokenizer_manager", "TokenizerManager", "context_len"),
    (f"{SGL}.managers.tokenizer_manager", "TokenizerManager", "model_config"),
    (f"{SGL}.configs.model_config", "ModelConfig", "hf_config"),
    (f"{SGL}.configs.model_config", "ModelConfig", "hidden_size"),
    (f"{SGL}.configs.model_config", "ModelConfig", "dtype"),
]


@pytest.mark.parametrize(("module", "owner", "name"), ATTRIBUTES)
def test_attribute_is_set(module: str, owner: str, name: str) -> None:
    assert f"self.{name} =" in inspect.getsource(_get(module, owner)) or (
        f"self.{name}: " in inspect.getsource(_get(module, owner))
    )


def test_the_encoder_class_is_the_one_whose_names_are_checked() -> None:
    server = import_module(f"{SGL}.disaggregation.encoder.server")
    assert _mm_encoder() is server.MMEncoder


def test_fields_of_a_prepared_item() -> None:
    server = import_module(f"{SGL}.disaggregation.encoder.server")
    assert "preprocess_result" in server.EncodeContext.__struct_fields__
    assert {"grid_thw", "token_counts"} <= set(server.EncoderPreprocessResult.__annotations__)


def test_error_of_the_encoder_has_a_status_and_a_text() -> None:
    server = import_module(f"{SGL}.disaggregation.encoder.server")
    error = server.BadRequestError("too odd")
    assert isinstance(error, server.MMError)
    assert (int(error.code), error.message) == (400, "too odd")


def test_sizes_of_the_encoders_thread_pools_are_read_from_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    envs = import_module(f"{SGL}.environ").envs
    for name in ("SGLANG_ENCODER_MM_LOAD_WORKERS", "SGLANG_ENCODER_PREPROC_WORKERS"):
        monkeypatch.setenv(name, "3")
        assert getattr(envs, name).get() == 3


def test_arguments_have_what_a_worker_reads_of_its_gpus() -> None:
    arguments = import_module(f"{SGL}.server_args").ServerArgs(model_path="m")
    assert arguments.base_gpu_id == 0 and arguments.gpu_id_step == 1
    sizes = ("tp_size", "pp_size", "dp_size", "nnodes")
    assert [getattr(arguments, name) for name in sizes] == [1, 1, 1, 1]
    assert arguments.enable_dp_attention is False
    assert arguments.mm_feature_transport is None


def test_processors_of_what_we_serve_fork_no_process() -> None:
    """SGLang has a pool of processes that it would fork at the first use: from ours, with a CUDA
    context and NIXL's threads. As long as nobody uses it, nothing is forked.
    """
    base = import_module(f"{SGL}.multimodal.processors.base_processor")
    handled = ("_create_cpu_executor", "_replace_broken_cpu_executor", "shutdown", "__init__")
    for name, method in vars(base.BaseMultimodalProcessor).items():
        if name not in handled and inspect.isfunction(method):
            assert "cpu_executor.submit" not in inspect.getsource(method), name
            assert "self.cpu_executor," not in inspect.getsource(method), name
    qwen = import_module(f"{SGL}.multimodal.processors.qwen_vl")
    assert "cpu_executor" not in inspect.getsource(qwen)
    llava = import_module(f"{SGL}.multimodal.processors.llava")
    assert "self.cpu_executor" in inspect.getsource(llava), "it has another name: look again"


def test_an_item_carries_its_embedding() -> None:
    item = import_module(f"{SGL}.managers.schedule_batch").MultimodalDataItem
    assert "precomputed_embeddings" in inspect.signature(item).parameters


@pytest.mark.parametrize("name", [0, 1, NUM_NAMES // 2, NUM_NAMES - 1])
def test_each_name_of_a_content_is_a_pad_value_of_its_own(name: int) -> None:
    schedule_batch = import_module(f"{SGL}.managers.schedule_batch")
    item = schedule_batch.MultimodalDataItem(modality=schedule_batch.Modality.IMAGE)
    item.set_hash(name)
    assert (item.hash, item.pad_value) == (name, 1_000_000 + name)
    item.set_pad_value()  # as SGLang does later
    assert (item.hash, item.pad_value) == (name, 1_000_000 + name)


def test_a_prompt_without_pad_values_gets_those_of_its_items() -> None:
    scheduler = import_module(f"{SGL}.managers.scheduler").Scheduler
    image_inputs = SimpleNamespace(padded_input_ids=None)
    assert not scheduler._try_apply_padded_mm_input_ids(None, None, image_inputs)
    assert (
        "padded_input_ids"
        in import_module(
            f"{SGL}.managers.schedule_batch"
        ).MultimodalProcessorOutput.__struct_fields__
    )


def test_options_that_share_kv() -> None:
    assert set(SHARED_KV) <= set(import_module(f"{SGL}.server_args").ServerArgs.__struct_fields__)


def test_tokenizer_manager_asks_the_processor_by_keyword() -> None:
    manager = import_module(f"{SGL}.managers.tokenizer_manager").TokenizerManager
    source = inspect.getsource(manager)
    asked = source[source.index("self.mm_processor.process_mm_data_async(") :][:400]
    for keyword in ("image_data=", "input_text="):
        assert keyword in asked


@pytest.mark.parametrize("name", ["DecodeWorkerHandler", "PrefillWorkerHandler"])
def test_handlers_read_references_from_where_we_put_them(name: str) -> None:
    handler = getattr(import_module("dynamo.sglang.request_handlers"), name)
    assert "build_disagg_mm_kwargs(" in inspect.getsource(handler.generate)
    build = import_module("dynamo.sglang.request_handlers.llm.mm_disagg_utils")
    request = {"multi_modal_data": {"image_url": [{"Url": "mm-resume:0"}]}}
    assert build.build_disagg_mm_kwargs(request)["image_data"] == ["mm-resume:0"]


def test_aggregated_handler_reads_references_from_where_we_put_them() -> None:
    handler = import_module("dynamo.sglang.request_handlers").DecodeWorkerHandler
    source = inspect.getsource(handler.generate)
    assert 'request.get("multi_modal_data"' in source
    assert "extract_media_urls(mm_data, IMAGE_URL_KEY)" in source


def test_a_prefill_handler_names_its_kv_first_and_its_figures_last() -> None:
    handler = import_module("dynamo.sglang.request_handlers").PrefillWorkerHandler
    source = inspect.getsource(handler.generate)
    first, last = source.index('"disaggregated_params":'), source.index('"engine_data":')
    assert first < source.index("self._consume_results(") < last


@pytest.mark.parametrize("name", ["Empty", "Chat", "Completions"])
def test_model_types(name: str) -> None:
    assert hasattr(_get("dynamo.llm", "ModelType"), name)


@pytest.mark.parametrize("name", ["Encode", "Prefill", "Decode", "Aggregated"])
def test_worker_types(name: str) -> None:
    assert hasattr(_get("dynamo.llm", "WorkerType"), name)


def test_errors_that_clients_see() -> None:
    make: Callable[[int, str], Exception] = _get("dynamo.llm", "HttpError")
    assert isinstance(make(503, "later"), Exception)
    assert str(_get("dynamo.llm.exceptions", "InvalidArgument")("so")) == "so"
