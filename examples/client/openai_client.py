# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Ask about a picture with OpenAI's own client, and print how its embedding travelled.

python examples/client/openai_client.py examples/pictures/large.png
python examples/client/openai_client.py https://example.com/picture.jpg --question "Where is it?"
"""

from __future__ import annotations

import argparse
import base64
import mimetypes
import sys
from pathlib import Path
from typing import Any

from openai import OpenAI, OpenAIError


def main() -> int:
    """Stream one answer; returns the exit code."""
    arguments = _parse_arguments()
    # The server asks for no key; the client insists on one.
    client = OpenAI(base_url=arguments.base_url, api_key="unused", timeout=arguments.timeout)
    try:
        model = arguments.model or client.models.list().data[0].id
        figures = ask(client, model, as_url(arguments.picture), arguments.question)
    except OpenAIError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print("\n" + ", ".join(f"{name} {value}" for name, value in figures.items()))
    return 0


def ask(client: OpenAI, model: str, url: str, question: str) -> dict[str, Any]:
    """Print the answer while it comes; returns the figures of the hand-off."""
    chunks = client.chat.completions.create(
        model=model,
        messages=[
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": url}},
                    {"type": "text", "text": question},
                ],
            }
        ],
        max_tokens=128,
        temperature=0,
        stream=True,
        # Dynamo's extension: the figures come with the last chunk.
        extra_body={"nvext": {"extra_fields": ["engine_data"]}},
    )
    figures: dict[str, Any] = {}
    for chunk in chunks:
        for choice in chunk.choices:
            print(choice.delta.content or "", end="", flush=True)
        nvext = (chunk.model_extra or {}).get("nvext") or {}
        figures |= (nvext.get("engine_data") or {}).get("mm_resume") or {}
    return figures


def as_url(picture: str) -> str:
    """An address as it is; a file as a `data:` URL, which the server needs no access to."""
    if picture.startswith(("http://", "https://", "data:")):
        return picture
    try:
        content = Path(picture).read_bytes()
    except OSError as error:
        raise SystemExit(f"error: {error}") from error
    kind = mimetypes.guess_type(picture)[0] or "image/jpeg"
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("picture", help="file (JPEG, PNG or WebP), or https: address")
    parser.add_argument("--question", default="Describe the picture in detail.")
    parser.add_argument("--base-url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--model", help="default: the first that is served")
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds; default: 120")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
