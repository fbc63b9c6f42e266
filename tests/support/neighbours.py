# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Workers of Dynamo's own beside a graph that runs: an embeddings worker and an image worker.

Their models are tiny and have random weights; the tokenizer is the demo model's.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoTokenizer, Qwen3Config, Qwen3Model

from examples.local_stack import CPU_ENGINE_ARGS, LocalStack, free_ports
from tests.support.deployments import READY_DEADLINE_S
from tests.support.worker_status import get, wait_until

WEIGHTS = Path(__file__).parents[2] / "examples" / "demo_model" / "weights"
HIDDEN = 64
END_DEADLINE_S = 60.0

EMBEDDER = "tiny-embedder"
PAINTER = "tiny-painter"


@dataclass(frozen=True)
class Neighbour:
    """A worker of `python -m dynamo.sglang` that serves a model of its own."""

    name: str
    component: str
    flags: tuple[str, ...]


def embedder(model: Path) -> Neighbour:
    """Answers `/v1/embeddings`."""
    flags = ("--embedding-worker", "--use-sglang-tokenizer", "--model-path", str(model))
    return Neighbour(EMBEDDER, "embeddings", (*flags, "--dtype", "float32", *CPU_ENGINE_ARGS))


def painter(model: Path, media: Path) -> Neighbour:
    """Answers `/v1/images/generations`."""
    flags = ("--image-diffusion-worker", "--model-path", str(model))
    return Neighbour(PAINTER, "pictures", (*flags, "--media-output-fs-url", media.as_uri()))


def text_model(folder: Path) -> Path:
    """Write a model of text, for the embeddings worker."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(WEIGHTS / name, folder / name)
    model = _qwen3()
    model.config.architectures = ["Qwen3ForCausalLM"]
    # SGLang looks for the names of the model with a head, which is tied to the embeddings here.
    state = {f"model.{name}": value for name, value in model.state_dict().items()}
    model.save_pretrained(folder, state_dict=state)
    return folder


@torch.inference_mode()
def embeddings(folder: Path, texts: Sequence[str]) -> list[torch.Tensor]:
    """What transformers makes of texts: the last token's state, of length 1."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = Qwen3Model.from_pretrained(folder, dtype=torch.float32)
    found = []
    for text in texts:
        states = model(**tokenizer(text, return_tensors="pt")).last_hidden_state
        found.append(torch.nn.functional.normalize(states[0, -1], dim=0))
    return found


def picture_model(folder: Path) -> Path:
    """Write a pipeline that makes pictures, in the form of Z-Image."""
    from diffusers import (
        AutoencoderKL,
        FlowMatchEulerDiscreteScheduler,
        ZImagePipeline,
        ZImageTransformer2DModel,
    )

    torch.manual_seed(0)
    transformer = ZImageTransformer2DModel(
        dim=HIDDEN,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=HIDDEN,
        axes_dims=[16, 8, 8],
    )
    vae = AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=[32] * 4,
        latent_channels=16,
        use_quant_conv=False,
        use_post_quant_conv=False,
        shift_factor=0.0,
    )
    ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=vae,
        text_encoder=_qwen3(),
        tokenizer=AutoTokenizer.from_pretrained(WEIGHTS),
        transformer=transformer,
    ).save_pretrained(folder)
    return folder


@contextmanager
def beside(stack: LocalStack, *neighbours: Neighbour) -> Iterator[None]:
    """They join the graph's namespace, serve during the block, and leave; exit code 0 each."""
    processes = {neighbour.name: _start(stack, neighbour) for neighbour in neighbours}

    def are_there() -> bool:
        return served(stack) >= set(processes) or any(p.poll() is not None for p in running)

    running = list(processes.values())
    try:
        assert wait_until(are_there, READY_DEADLINE_S), _logs(stack, neighbours)
        assert all(process.poll() is None for process in running), _logs(stack, neighbours)
        yield
        for process in running:
            process.terminate()
        assert [process.wait(END_DEADLINE_S) for process in running] == [0] * len(running)
    finally:
        for process in running:
            process.kill()
            process.wait()


def served(stack: LocalStack) -> set[str]:
    """The models that the frontend lists."""
    return {entry["id"] for entry in get(f"{stack.base_url}/models").json()["data"]}


def _start(stack: LocalStack, neighbour: Neighbour) -> subprocess.Popen[bytes]:
    system_port, engine_port = free_ports(2)
    endpoint = f"dyn://{stack.environment['DYN_NAMESPACE']}.{neighbour.component}.generate"
    command = [
        *(sys.executable, "-m", "dynamo.sglang", *neighbour.flags),
        *("--served-model-name", neighbour.name, "--endpoint", endpoint),
        *("--nccl-port", str(engine_port)),
    ]
    with _log(stack, neighbour).open("ab") as log:
        return subprocess.Popen(
            command,
            env={**stack.environment, "DYN_SYSTEM_PORT": str(system_port)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def _log(stack: LocalStack, neighbour: Neighbour) -> Path:
    return stack.log_dir / f"{neighbour.name}.log"


def _logs(stack: LocalStack, neighbours: Sequence[Neighbour]) -> str:
    return "\n".join(_log(stack, neighbour).read_text()[-5000:] for neighbour in neighbours)


def _qwen3() -> Qwen3Model:
    torch.manual_seed(0)
    return Qwen3Model(
        Qwen3Config(
            vocab_size=512,
            hidden_size=HIDDEN,
            intermediate_size=2 * HIDDEN,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
            dtype="float32",
        )
    )
