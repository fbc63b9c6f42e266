# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""The demo model's vision tower on the GPU of `--base-gpu-id`, against the same on the CPU.

python -m benchmarks.gpu_check.tower DEVICE INDEX FILE  # one of the two
"""

import asyncio
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import torch

from benchmarks.gpu_check.cases import Failed, Figure, require

MODEL: Final = Path(__file__).parents[2] / "examples" / "demo_model" / "weights"
#: Pixels of a side: one of a few tokens, a batch of equal ones, and a larger one.
SIZES: Final = (56, 112, 112, 112, 448)
#: Seconds for a process that loads SGLang and the tower.
LIMIT_S: Final = 180.0
#: Of the largest element. Convolutions may be TF32 on a GPU.
TOLERANCE: Final = 0.02


def section(device: torch.device) -> Iterator[Figure]:
    """With several GPUs the last one: it is not the device that threads have by themselves."""
    on_gpu = device.type == "cuda"
    index = torch.cuda.device_count() - 1 if on_gpu else 0
    with tempfile.TemporaryDirectory() as folder:
        found, rows = _rows(device.type, index, Path(folder) / "there.pt")
        require(found["pool"] == found["expected"], f"the pool is on {found['pool']}")
        wrong = {name: where for name, where in found["threads"].items() if where != index}
        require(not on_gpu or not wrong, f"threads work elsewhere: {wrong}")
        require(found["stored"], "rows in the pool are not those of the tower")
        yield Figure("rows, pool", f"{found['device']}, {found['pool']}")
        yield Figure("five images, together", f"{1e3 * found['seconds']:8.1f} ms")
        if not on_gpu:
            return
        _, expected = _rows("cpu", 0, Path(folder) / "here.pt")
    largest = max(float(one.abs().max()) for one in expected)
    differences = [float((a - b).abs().max()) for a, b in zip(rows, expected, strict=True)]
    yield Figure("largest difference to the CPU", f"{max(differences) / largest:.2e}")
    require(max(differences) < TOLERANCE * largest, "rows differ from those of a CPU")
    if index == 0:
        yield Figure("--base-gpu-id above 0", "not proven: there is one GPU")


def _rows(device: str, index: int, file: Path) -> tuple[dict[str, Any], list[torch.Tensor]]:
    done = subprocess.run(
        [sys.executable, "-m", __name__, device, str(index), str(file)],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    if done.returncode:
        raise Failed(f"exit code {done.returncode}: {done.stderr[-1500:]}")
    rows: list[torch.Tensor] = torch.load(file)
    return json.loads(done.stdout.splitlines()[-1]), rows


async def _main(device: str, index: int, file: str) -> None:
    """Rows into `file`; what was seen on the way, as JSON, to stdout."""
    import time

    from dynamo.sglang.args import parse_args

    from dynamo.sglang_mm_resume.config import Settings
    from dynamo.sglang_mm_resume.core.layout import Layout
    from dynamo.sglang_mm_resume.workers.pool import make_pool
    from dynamo.sglang_mm_resume.workers.sglang_encoder import VisionEncoder
    from dynamo.sglang_mm_resume.workers.start_encode import ENGINE_ARGS

    on_gpu = device == "cuda"
    arguments = ["--model-path", str(MODEL), "--device", device, "--dtype", "float32"]
    arguments += ["--base-gpu-id", str(index), "--mm-attention-backend", "sdpa"]
    config = await parse_args([*ENGINE_ARGS, *arguments])
    encoder = VisionEncoder(config.server_args, num_threads=2, max_batch=len(SIZES))
    images = [_image(number, size) for number, size in enumerate(SIZES)]
    prepared = [await encoder.prepare(image) for image in images]
    await asyncio.gather(*(encoder.encode(one) for one in prepared))
    began = time.monotonic()
    rows = await asyncio.gather(*(encoder.encode(one) for one in prepared))
    seconds = time.monotonic() - began
    layout = Layout(model="m", width=encoder.width, dtype=encoder.dtype, block_size=16)
    settings = Settings(block_size=16, pool_device="cuda" if on_gpu else "auto")
    pool = make_pool(settings, layout, None, encoder.gpus, rows_on_gpu=True)
    blocks = range(layout.blocks_for(len(rows[-1])))
    pool.memory.scatter(rows[-1], blocks).wait()
    back = pool.memory.empty_rows(len(rows[-1]))
    pool.memory.gather(blocks, back)
    torch.save([one.cpu() for one in rows], file)
    executors = (encoder._tower, encoder._videos, encoder._encoder.preprocessor.preproc_executor)
    current = torch.cuda.current_device if on_gpu else int
    found = {
        "device": str(rows[-1].device),
        "pool": str(pool.memory.device),
        "expected": f"cuda:{index}" if on_gpu else "cpu",
        "threads": {e._thread_name_prefix: e.submit(current).result() for e in executors},
        "stored": torch.equal(back, rows[-1].cpu()),
        "seconds": seconds,
    }
    encoder.close()
    print(json.dumps(found))


def _image(number: int, size: int) -> Any:
    from PIL import Image

    generator = torch.Generator().manual_seed(number)
    pixels = torch.randint(0, 256, (size, size, 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1], int(sys.argv[2]), sys.argv[3]))
