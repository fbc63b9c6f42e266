# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""The deployments that tests use, and a keeper that has at most one of them running."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import files
from pathlib import Path
from typing import Literal

from dynamo.sglang_mm_resume.workers.role import MODE_ENV
from examples.local_stack import LocalStack, StackConfig
from tests.support import holds
from tests.support.spans import SpanCollector

MODEL_NAME = "tiny-vlm"
MODEL_FOLDER = "{model}"
"""Stands for the model's folder in arguments of engines; tests make it when they run."""
READY_DEADLINE_S = 300.0


def _nixl_libraries() -> Path:
    """The folder with the C library that NIXL's wheel brings."""
    libraries = [file for file in files("nixl-cu13") or () if file.name == "libnixl_capi.so"]
    return Path(str(libraries[0].locate())).parent if libraries else Path()


NIXL_LIBRARIES = _nixl_libraries()

Model = Literal["random", "trained", "qwen2_vl", "qwen3_vl", "qwen3_vl_moe"]
"""With random weights, and of Qwen2.5-VL's family, unless named otherwise."""


@dataclass(frozen=True)
class Deployment:
    """A configuration of the whole stack. Equal ones share their processes."""

    name: str
    model: Model = "random"
    workers: tuple[str, ...] = ()
    """Arguments of the encode, prefill and decode workers."""
    encode: tuple[str, ...] = ()
    """Further ones of the encode workers."""
    prefill: tuple[str, ...] = ()
    """Further ones of the workers with an engine: prefill and decode."""
    processor: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = ()
    frontend_module: str = "dynamo.frontend"
    modules: tuple[tuple[str, str], ...] = ()
    """What runs in place of a role's module, or of one process's: `("prefill-1", module)`."""
    env_of: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """The environment of a role, or of one process, beside that of all."""
    num_encode: int = 1
    num_prefill: int = 1
    num_decode: int = 0
    kv_events: bool = False
    """Prefill workers tell routers what they have in their KV cache."""
    traced: bool = False
    """Export spans to `Keeper.spans`."""
    local_media: bool = False
    """Files in `Keeper.local_media` may be named by `file:` URLs."""


def pool_args(block_size: int, default_blocks: int, buffers: int) -> tuple[str, ...]:
    """Arguments for a pool of `default_blocks * buffers` blocks."""
    return (
        *("--multimodal-block-size", str(block_size)),
        *("--default-multimodal-blocks", str(default_blocks)),
        *("--embedding-cache-buffer-size", str(buffers)),
    )


# Loopback is a private address: without this, test servers on it are refused by policy.
LOCAL_URLS = ("DYN_MM_ALLOW_INTERNAL", "1")
CONTEXT_LENGTH = 2048

SMALL_POOL = Deployment(
    "small-pool",
    # 8 blocks of 16 tokens, a default grant is 2 blocks: 32 tokens of 128.
    workers=pool_args(block_size=16, default_blocks=2, buffers=4),
    prefill=(
        *("--context-length", str(CONTEXT_LENGTH)),
        "--enable-metrics",
        # A model that knows nothing would fill guided JSON with tabs, up to its last token.
        "--constrained-json-disable-any-whitespace",
    ),
    processor=(
        *("--mm-resume-max-media-items", "4"),
        *("--dyn-tool-call-parser", "hermes"),
        # The JSON of structural tags may have whitespace in spite of the engine's flag.
        *("--dyn-structural-tag", "false"),
        # Its marks are words. Dynamo's parser of "<think>" wants it in one token or few.
        *("--dyn-reasoning-parser", "granite"),
    ),
    env=(LOCAL_URLS,),
    traced=True,
    local_media=True,
)
ONE_BLOCK = Deployment(
    "one-block",
    workers=pool_args(block_size=16, default_blocks=1, buffers=1),
    prefill=("--no-local-vision",),
    processor=("--encode-min-items", "3", "--dyn-tool-call-parser", "hermes"),
)
"""Its engine has no vision tower, of which its processor has to hear."""
SLOT_TOKENS = 64
INDEX_MODE = Deployment(
    "index-mode",
    workers=(
        *pool_args(block_size=16, default_blocks=2, buffers=2),
        *("--mm-resume-slot-tokens", str(SLOT_TOKENS)),
    ),
    env=(("SGLANG_USE_BLOCK_ALLOCATOR", "false"),),
)
DISTURBED = Deployment(
    "disturbed",
    workers=SMALL_POOL.workers,
    modules=(("encode", "tests.support.disturbed_encode_worker"),),
)
TRAINED = Deployment("trained", model="trained")
"""Default settings throughout."""
QWEN3_VL = Deployment(
    "qwen3-vl",
    model="qwen3_vl",
    # A pool of 512 tokens, which a short video fits; a default grant has 32 of them.
    workers=pool_args(block_size=16, default_blocks=2, buffers=16),
)
QWEN3_VL_MOE = replace(QWEN3_VL, name="qwen3-vl-moe", model="qwen3_vl_moe", num_decode=1)
QWEN2_VL = replace(QWEN3_VL, name="qwen2-vl", model="qwen2_vl")
LIFECYCLE = Deployment("lifecycle", workers=SMALL_POOL.workers)
TWO_BY_TWO = Deployment(
    "two-by-two",
    workers=SMALL_POOL.workers,
    env=(("DYN_SGL_MM_RESUME_ADAPTIVE_DEFAULT", "true"),),
    num_encode=2,
    num_prefill=2,
)
KV_ROUTING = Deployment(
    "kv-routing",
    workers=SMALL_POOL.workers,
    processor=("--router-mode", "kv"),
    num_encode=2,
    num_prefill=2,
    kv_events=True,
)

FAULTS = Deployment(
    "faults",
    # As in SMALL_POOL; time-outs are short, so that what waits for one is tested soon.
    workers=(
        *SMALL_POOL.workers,
        *("--mm-bootstrap-timeout", "8"),
        *("--mm-heartbeat-interval", "1"),
        *("--mm-resume-drain-s", "0.5"),
        "--mm-resume-checksum",
        # The same pictures have to go through the tower again and again.
        "--no-mm-resume-embedding-cache",
    ),
    prefill=(
        *("--context-length", str(CONTEXT_LENGTH)),
        # One large transfer is granted six of the eight blocks: in quarantine they leave two.
        *("--mm-resume-max-quarantined-fraction", "0.75"),
    ),
    processor=(
        *("--mm-bootstrap-timeout", "8"),
        *("--mm-heartbeat-interval", "1"),
        "--no-mm-resume-embedding-cache",  # all encode workers take turns
    ),
    env=(LOCAL_URLS,),
    frontend_module="dynamo.sglang_mm_resume.frontend",
    modules=(("encode", holds.ENCODE_MODULE),),
    num_encode=2,
)
"""Two encode workers, so that one may be lost."""

E_P_D_CONTEXT_LENGTH = 8192
E_P_D = replace(
    FAULTS,
    name="e-p-d",
    prefill=("--context-length", str(E_P_D_CONTEXT_LENGTH)),
    num_encode=1,
    num_decode=1,
)
"""A decode worker answers. Short time-outs as above, as its faults are tested here too."""

SMALL_TOKENS = 40
ENCODE_LOCALLY = Deployment(
    "encode-locally",
    workers=FAULTS.workers,
    processor=(
        *(*FAULTS.processor, "--encode-fallback", "local"),
        *("--encode-min-tokens", str(SMALL_TOKENS), "--encode-min-items", "2"),
    ),
    env=FAULTS.env,
    modules=FAULTS.modules,
)
"""One encode worker, and an engine that can do without it, and does for a small picture."""

MANY_IMAGES = Deployment(
    "many-images",
    workers=SMALL_POOL.workers,
    processor=("--mm-resume-max-media-items", "512"),
)
"""Hundreds of pictures in one request, which the engine has room for 16,384 tokens of."""

ENTRY_POINT = "dynamo.sglang_mm_resume"
PREVIOUS_RELEASE = "tests.support.previous_release"
_BLOCKS = {"SGLANG_EMBEDDING_CACHE_BUFFER_SIZE": "4"}
_SLOTS = {
    "SGLANG_USE_BLOCK_ALLOCATOR": "false",
    "SGLANG_EMBEDDING_CACHE_BUFFER_SIZE": "2",
    "DYN_SGL_MM_RESUME_SLOT_TOKENS": str(SLOT_TOKENS),
}
COMPATIBILITY = Deployment(
    "compatibility",
    processor=("--role", "processor", "--encode-fallback", "local"),
    env=(
        ("SGLANG_MULTIMODAL_BLOCK_SIZE", "16"),
        ("SGLANG_DEFAULT_MULTIMODAL_BLOCKS", "2"),
        ("SGLANG_DISAGGREGATION_HEARTBEAT_INTERVAL", "1"),
        ("DYN_MIGRATION_LIMIT", "3"),
    ),
    env_of={
        "encode": {MODE_ENV: "encode"},
        "prefill": {MODE_ENV: "language"},
        "encode-0": _BLOCKS,
        "encode-1": _SLOTS,
        "encode-2": {"SGLANG_MULTIMODAL_BLOCK_SIZE": "32"},
        "prefill-0": _BLOCKS,
        "prefill-1": _SLOTS,
    },
    modules=(
        *((role, ENTRY_POINT) for role in ("processor", "encode", "prefill")),
        *((name, PREVIOUS_RELEASE) for name in ("encode-1", "prefill-1")),
    ),
    num_encode=3,
    num_prefill=2,
)
"""Started by the one entry point. No two workers of a role are alike: those with number 1 are of
the release before and have slots instead of blocks, and one encode worker fits no other.
"""

FRONTEND_DECODING = Deployment(
    "frontend-decoding",
    workers=SMALL_POOL.workers,
    prefill=SMALL_POOL.prefill,
    processor=("--frontend-decoding",),
    env=(LOCAL_URLS,),
    env_of={"frontend": {"LD_LIBRARY_PATH": str(NIXL_LIBRARIES)}},
)
"""The frontend fetches and decodes pictures. It loads NIXL by the name of its library."""


class Keeper:
    """Starts deployments on demand, and stops the one before: two cores do not carry two."""

    def __init__(self, models: Mapping[Model, Path], log_root: Path) -> None:
        self._models = models
        self._log_root = log_root
        self._running: tuple[Deployment, LocalStack] | None = None
        self._starts = 0
        self.spans: SpanCollector | None = None
        """Of the deployment that runs, if it is traced."""
        self.local_media = log_root
        """Of the deployment that runs, if it has any."""

    def get(self, deployment: Deployment) -> LocalStack:
        """The deployment, ready; started unless it is the one that runs."""
        if self._running is not None and self._running[0] == deployment:
            self._running[1].check()
            return self._running[1]
        stack = self.start(deployment)
        stack.wait_ready(READY_DEADLINE_S)
        return stack

    def start(self, deployment: Deployment) -> LocalStack:
        """A fresh start, without waiting until it is ready."""
        self.stop()
        self._starts += 1
        stack = self._make(deployment)
        self._running = (deployment, stack)
        stack.start()
        return stack

    def stop(self) -> None:
        """Stop the one that runs, if any."""
        if self._running is not None:
            _, stack = self._running
            self._running = None
            stack.stop()
        if self.spans is not None:
            self.spans.close()
            self.spans = None

    def _make(self, deployment: Deployment) -> LocalStack:
        log_dir = self._log_root / f"{self._starts}-{deployment.name}"
        holds_dir = log_dir / "holds"
        holds_dir.mkdir(parents=True)
        self.local_media = log_dir / "media"
        self.local_media.mkdir()
        media = {"DYN_MM_LOCAL_PATH": str(self.local_media)} if deployment.local_media else {}
        self.spans = SpanCollector() if deployment.traced else None
        tracing = self.spans.environment if self.spans else {}
        folder = str(self._models[deployment.model])
        prefill = [argument.replace(MODEL_FOLDER, folder) for argument in deployment.prefill]
        config = StackConfig(
            self._models[deployment.model],
            MODEL_NAME,
            num_encode=deployment.num_encode,
            num_prefill=deployment.num_prefill,
            num_decode=deployment.num_decode,
            kv_events=deployment.kv_events,
            dtype="float32",
            frontend_module=deployment.frontend_module,
            processor_args=deployment.processor,
            encode_args=(*deployment.workers, *deployment.encode),
            prefill_args=(*deployment.workers, *prefill),
            decode_args=(*deployment.workers, *prefill),
            modules=dict(deployment.modules),
            env_of=deployment.env_of,
            env={**dict(deployment.env), **media, **tracing, holds.FOLDER_ENV: str(holds_dir)},
            log_dir=log_dir,
        )
        return LocalStack(config)
