# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Start everything on this machine, ask about a small and a large picture, check the answers.

`make demo` runs it; with `--keep` the deployment stays up afterwards. The small picture fits into
the blocks of a default grant; the large one does not and goes over in several rounds. Each is sent
twice: inside the request (`data:`) and as an address to load it from (`http:`).
"""

from __future__ import annotations

import argparse
import base64
import json
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from local_stack import LocalStack, ProcessStatus, StackConfig, StackError
from openai import OpenAI, OpenAIError
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

HERE = Path(__file__).resolve().parent
MODEL_NAME = "mm-resume-demo"
SMALL, LARGE = "small.png", "large.png"
MAX_TOKENS = 32
READY_DEADLINE_S = 300.0
REQUEST_TIMEOUT_S = 120.0

console = Console(highlight=False)


class DemoError(RuntimeError):
    """The demo cannot go on."""


@dataclass(frozen=True)
class Picture:
    """A picture with its question and the right answer."""

    name: str
    content: bytes
    question: str
    answer: str

    @property
    def data_url(self) -> str:
        """The picture as a URL that contains it."""
        return f"data:image/png;base64,{base64.b64encode(self.content).decode('ascii')}"


@dataclass
class Result:
    """What came back for one request."""

    picture: Picture
    scheme: str
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    """What the processor says about the hand-off: image_tokens, rounds, bytes, wait_ms, ..."""
    prompt_tokens: int = 0
    first_token_ms: float = 0.0

    @property
    def is_right(self) -> bool:
        """Whether the answer is the expected one."""
        return _plain(self.text) == _plain(self.picture.answer)

    @property
    def rounds(self) -> int:
        """How many chunks the embedding took."""
        return int(self.figures.get("rounds", 0))


def main() -> int:
    """Run the demo; returns the exit code."""
    arguments = _parse_arguments()
    try:
        return run(arguments.model, arguments.pictures, arguments.keep)
    except (StackError, DemoError) as error:
        console.print(Text(f"\nThe demo failed: {error}"), soft_wrap=True)
        return 2
    except KeyboardInterrupt:
        console.print("\nInterrupted; everything is stopped.")
        return 130


def run(model_path: Path, pictures_path: Path, keep: bool) -> int:
    """Start, ask, check, stop."""
    started_at = time.monotonic()
    small, large = (_load_picture(pictures_path, name) for name in (SMALL, LARGE))
    if not (model_path / "config.json").is_file():
        raise DemoError(f"no model in {model_path}: train the demo model first")
    config = StackConfig(
        model_path,
        MODEL_NAME,
        dtype="float32",
        frontend_module="dynamo.sglang_mm_resume.frontend",
        # Media is loaded over https from public addresses only, unless this is set. The demo's own
        # picture server is neither; do not set it where clients are not trusted.
        env={"DYN_MM_ALLOW_INTERNAL": "1"},
    )
    with LocalStack(config) as stack, serve_folder(pictures_path) as pictures_url:
        reference = _in_thread(reference_tokens, model_path, large)
        with _progress() as show:
            stack.wait_ready(READY_DEADLINE_S, show)
        console.print(f"Ready after {time.monotonic() - started_at:.0f} s: {stack.base_url}\n")
        results = ask_all(stack, (small, large), pictures_url)
        failures = check(results, reference.result())
        console.print(f"\nFinished after {time.monotonic() - started_at:.0f} s.")
        if keep:
            _keep(stack, f"{pictures_url}/{LARGE}", large.question)
    console.print("All processes are stopped.")
    return 1 if failures else 0


# --- Asking ---


def ask_all(stack: LocalStack, pictures: Sequence[Picture], pictures_url: str) -> list[Result]:
    """Send each picture in both ways, printing as the answers come."""
    client = OpenAI(
        base_url=stack.base_url, api_key="unused", timeout=REQUEST_TIMEOUT_S, max_retries=0
    )
    # The client loads its own modules when it is first used; that is not what is measured here.
    client.models.list()
    _ = client.chat.completions
    results = []
    for picture in pictures:
        addresses = {"data:": picture.data_url, "http:": f"{pictures_url}/{picture.name}"}
        for scheme, url in addresses.items():
            try:
                results.append(ask(client, picture, scheme, url))
            except OpenAIError as error:
                stack.check()  # Where a worker has died, its log says more than the status does.
                tails = [stack.log_tail(process.name) for process in stack.processes]
                raise DemoError("\n".join([f"{picture.name}: {error}", *tails])) from error
    return results


def ask(client: OpenAI, picture: Picture, scheme: str, url: str) -> Result:
    """Send one picture and print the answer while it streams."""
    result = Result(picture, scheme)
    console.print(Text(f"{picture.name} as {scheme} URL", style="bold"))
    console.print(Text(f"  {picture.question} "), end="")
    sent_at = time.monotonic()
    chunks = client.chat.completions.create(
        model=MODEL_NAME,
        messages=[
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": url}},
                    {"type": "text", "text": picture.question},
                ],
            }
        ],
        max_tokens=MAX_TOKENS,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"nvext": {"extra_fields": ["engine_data", "completion_token_ids"]}},
    )
    for chunk in chunks:
        if chunk.choices and not result.first_token_ms:
            result.first_token_ms = (time.monotonic() - sent_at) * 1000
        _take(result, chunk)
    verdict = "right" if result.is_right else f"wrong, it is: {result.picture.answer}"
    console.print(Text(f"  -> {verdict}", style=_colour(result.is_right)))
    console.print(_figures_table(result))
    return result


def _take(result: Result, chunk: Any) -> None:
    """Take what one chunk of the stream carries; Dynamo's own fields are under `nvext`."""
    for choice in chunk.choices:
        result.text += choice.delta.content or ""
        console.print(Text(choice.delta.content or ""), end="")
    if chunk.usage is not None:
        result.prompt_tokens = chunk.usage.prompt_tokens
    nvext = (chunk.model_extra or {}).get("nvext") or {}
    result.token_ids += nvext.get("completion_token_ids") or []
    result.figures |= (nvext.get("engine_data") or {}).get("mm_resume") or {}


def _figures_table(result: Result) -> Table:
    figures = result.figures
    cells = {
        "image tokens": f"{figures['image_tokens']:,}" if figures else "?",
        "rounds": f"{figures['rounds']}" if figures else "?",
        "bytes moved": f"{figures['bytes']:,}" if figures else "?",
        "waited for blocks": f"{figures['wait_ms']:.1f} ms" if figures else "?",
        "first token": f"{result.first_token_ms:.0f} ms",
    }
    table = Table(*cells, box=None, pad_edge=False, header_style="dim")
    table.add_row(*cells.values())
    return table


# --- Checking ---


def reference_tokens(model_path: Path, picture: Picture) -> list[int]:
    """Token ids that transformers gives for a picture: same weights, no Dynamo and no hand-off."""
    import io

    import torch
    from PIL import Image
    from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.set_num_threads(1)  # The workers that start meanwhile need the cores more.
    processor = AutoProcessor.from_pretrained(model_path)
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(model_path, dtype=torch.float32)
    content = [{"type": "image"}, {"type": "text", "text": picture.question}]
    prompt = processor.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    image = Image.open(io.BytesIO(picture.content)).convert("RGB")
    inputs = processor(text=[prompt], images=[image], return_tensors="pt")
    with torch.inference_mode():
        output = model.generate(**inputs, do_sample=False, max_new_tokens=MAX_TOKENS)
    return output[0, inputs["input_ids"].shape[1] :].tolist()


def check(results: Sequence[Result], reference: Sequence[int]) -> list[str]:
    """Print what is as it should be and what is not; returns the latter."""
    console.print()
    verdicts: dict[str, bool] = {}
    for result in results:
        name = f"{result.picture.name} ({result.scheme})"
        verdicts[f"{name}: the answer is right"] = result.is_right
        if result.picture.name == LARGE:
            verdicts[f"{name}: the hand-off took two rounds or more"] = result.rounds >= 2
            same = result.token_ids == list(reference)
            verdicts[f"{name}: token ids equal transformers'"] = same
            if not same:
                console.print(f"{name}: served {result.token_ids}", soft_wrap=True)
                console.print(f"{name}: transformers {list(reference)}", soft_wrap=True)
    for verdict, holds in verdicts.items():
        console.print(Text("  ok    " if holds else "  FAILED", style=_colour(holds)), end=" ")
        console.print(Text(verdict))
    return [verdict for verdict, holds in verdicts.items() if not holds]


def _plain(text: str) -> str:
    return " ".join(text.lower().split()).rstrip(".")


def _colour(good: bool) -> str:
    return "green" if good else "red"


# --- Around it ---


@contextmanager
def serve_folder(folder: Path) -> Iterator[str]:
    """Serve a folder over http on loopback, from a thread; gives its address."""

    class Handler(SimpleHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_arguments: object) -> None:
            """Say nothing: the terminal belongs to the demo."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_arguments: object) -> None:
            """Ignore it: the frontend closes the connection once it knows a picture's size."""

    with Server(("127.0.0.1", 0), partial(Handler, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()


@contextmanager
def _progress() -> Iterator[Any]:
    """Gives a function that shows process states: live in a terminal, else a line per change."""
    if console.is_terminal:
        with Live(console=console, refresh_per_second=8, transient=True) as live:
            yield lambda statuses: live.update(_status_table(statuses))
        return
    seen: dict[str, str] = {}

    def print_changes(statuses: Sequence[ProcessStatus]) -> None:
        for status in statuses:
            if seen.get(status.name) != status.state:
                seen[status.name] = status.state
                console.print(f"{status.name}: {status.state} ({status.seconds:.1f} s)")

    yield print_changes


def _status_table(statuses: Sequence[ProcessStatus]) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    for status in statuses:
        style = "green" if status.state == "ready" else "yellow"
        state = Text(status.state, style=style)
        table.add_row(Text(status.name), state, Text(f"{status.seconds:5.1f} s"))
    return table


def _in_thread(function: Any, *arguments: Any) -> Future[Any]:
    """Run a function beside everything else; unlike an executor's, the thread never delays exit."""
    future: Future[Any] = Future()

    def work() -> None:
        try:
            future.set_result(function(*arguments))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return future


def _keep(stack: LocalStack, picture_url: str, question: str) -> None:
    """Show how to ask by hand, and wait for Ctrl-C."""
    parts = [
        {"type": "image_url", "image_url": {"url": picture_url}},
        {"type": "text", "text": question},
    ]
    body = {
        "model": MODEL_NAME,
        "messages": [{"role": "user", "content": parts}],
        "max_tokens": MAX_TOKENS,
    }
    quoted = json.dumps(body).replace("'", "'\\''")
    console.print("\nStill running. Ask it yourself:\n")
    # Not through the console, which would break the long line.
    print(f"curl -s {stack.base_url}/chat/completions -H 'Content-Type: application/json' \\")
    print(f"  -d '{quoted}'", flush=True)
    console.print("\nWatch pools and transfers in another terminal:\n")
    urls = ",".join(url.removeprefix("http://") for url in stack.worker_urls.values())
    print(f"{sys.executable} -m dynamo.sglang_mm_resume.top --url {urls}", flush=True)
    console.print(f"\nLogs: {stack.log_dir}. Ctrl-C stops everything.")
    try:
        while True:
            time.sleep(1)
            stack.check()
    except KeyboardInterrupt:
        console.print("\nStopping ...")


def _load_picture(folder: Path, name: str) -> Picture:
    try:
        entry = json.loads((folder / "questions.json").read_text(encoding="utf-8"))[name]
        content = (folder / name).read_bytes()
        return Picture(name, content, entry["question"], entry["answer"])
    except (OSError, KeyError, ValueError) as error:
        raise DemoError(f"no picture {name} with question and answer in {folder}") from error


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keep", action="store_true", help="stay up after the answers")
    parser.add_argument("--model", type=Path, default=HERE / "demo_model" / "weights")
    parser.add_argument("--pictures", type=Path, default=HERE / "pictures")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
