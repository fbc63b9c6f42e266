# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Conversations, their parts and their media: right ones, odd ones and broken ones."""

from __future__ import annotations

import base64
import random
from typing import Any

from tests.fuzzing.grammars import schema
from tests.support.client import data_url
from tests.support.hostile_media import CASES, JPEG, MIB, PNG, WEBP, inline
from tests.support.pictures import patchwork

Body = dict[str, Any]

WEB = "http://media.test"
"""Stands for the root of the web server with `hostile_media.PAGES`, whose port is not known yet."""
_SMALL = [data_url(patchwork(900 + i, 2 + i % 4, 2 + i // 4)) for i in range(8)]
_LARGE = [data_url(patchwork(920 + i, *size)) for i, size in enumerate([(12, 11), (20, 20)])]
_MEDIA_TYPES = ["image/png", "image/jpeg", "image/webp", "video/mp4", "text/plain", "", "\0"]
_VIDEOS = [
    "data:video/mp4;base64,AAAA",
    "data:video/jpeg;base64," + ",".join([base64.b64encode(JPEG).decode()] * 3),
    f"{WEB}/good.png",
    "file:///etc/passwd",
]
_TEXTS = [
    *("What is this?", "", " ", "\0", "a\0b", "\ud800", "\ud83d\ude42" * 50, "‮abc", "{{ 7 * 7 }}"),
    *("<|image_pad|>", "<|vision_start|><|image_pad|><|vision_end|>", "<|im_end|>" * 50),
    *("<|im_start|>system\n", "<tool_call>{}</tool_call>", "<think>", "<|video_pad|>" * 3),
    *("word " * 500, "word " * 3_000, "x" * 200_000),
]
_ROLES = ["user", "user", "assistant", "system", "tool", "function", "developer", "", "nobody"]


def _mutated_file(chance: random.Random) -> str:
    """An image file with some bytes changed, cut out or doubled."""
    content = bytearray(chance.choice([PNG, JPEG, WEBP]))
    for _ in range(chance.choice([1, 1, 3, 20])):
        at = chance.randrange(len(content))
        piece = content[at : at + chance.choice([1, 4, 100])]
        new = chance.choice([b"", bytes(piece) * 2, chance.randbytes(len(piece)), b"\xff" * 4])
        content[at : at + len(piece)] = new
    return inline(bytes(content), chance.choice(_MEDIA_TYPES[:3]))


def _odd_url(chance: random.Random) -> Any:
    content = chance.choice([PNG, b"", b"not an image", bytes(3 * MIB)])
    urls = ["", " ", "data:", "data:image/png;base64,", "blob:x", "mm-resume:image:00", None, 5, []]
    return chance.choice([*urls, inline(content, chance.choice(_MEDIA_TYPES)), "x" * 100_000])


def _hostile(chance: random.Random) -> str:
    """One that nobody has to wait for, as a rule."""
    case = chance.choice(CASES)
    return case.url(WEB) if not case.waits or chance.random() < 0.2 else chance.choice(_SMALL)


def image_url(chance: random.Random) -> Any:
    """What stands where the URL of an image is expected."""
    makers = [
        lambda _: chance.choice(_SMALL),
        lambda _: chance.choice(_LARGE),
        _hostile,
        _mutated_file,
        _odd_url,
    ]
    return chance.choices(makers, [8, 2, 4, 4, 1])[0](chance)


def _image(chance: random.Random) -> Any:
    part: Body = {"type": "image_url", "image_url": {"url": image_url(chance)}}
    if chance.random() < 0.1:
        part["image_url"]["detail"] = chance.choice(["low", "high", "auto", "best", 5])
    if chance.random() < 0.05:
        part["image_url"] |= {"min_pixels": 1, "max_pixels": chance.choice([0, 10**9, -1])}
    if chance.random() < 0.05:
        part["uuid"] = chance.choice(["x", "", 5, "00000000-0000-0000-0000-000000000000"])
    return part


def _odd_part(chance: random.Random) -> Any:
    return chance.choice(
        [
            {"type": "video_url", "video_url": {"url": chance.choice(_VIDEOS)}},
            {"type": "audio_url", "audio_url": {"url": "data:audio/wav;base64,AAAA"}},
            {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
            {"type": "file", "file": {"file_id": "x"}},
            {"type": "refusal", "refusal": "no"},
            {"type": "image_url", "image_url": image_url(chance)},
            {"type": "image_url"},
            {"type": "text"},
            {"type": "text", "text": None},
            {"type": "no-such-type"},
            {},
            None,
            5,
            "text",
        ]
    )


def text(chance: random.Random) -> str:
    """A short question as a rule."""
    return chance.choice(_TEXTS) if chance.random() < 0.4 else _TEXTS[0]


def content(chance: random.Random) -> Any:
    """Of one message."""
    kind = chance.choices(["text", "image", "several", "odd", "many"], [4, 6, 3, 1, 0.2])[0]
    if kind == "text":
        return text(chance)
    if kind == "many":
        return [_image(chance)] * chance.choice([20, 64, 65]) + [{"type": "text", "text": "?"}]
    parts = [_image(chance) for _ in range(1 if kind == "image" else chance.randrange(2, 5))]
    parts.append({"type": "text", "text": text(chance)})
    if kind == "odd":
        parts.append(_odd_part(chance))
    chance.shuffle(parts)
    return parts


def _message(chance: random.Random) -> Any:
    message: Body = {"role": chance.choice(_ROLES), "content": content(chance)}
    if chance.random() < 0.1:
        message["name"] = chance.choice(["", "x", "x" * 10_000, 5])
    if message["role"] in ("tool", "function"):
        message["tool_call_id"] = chance.choice(["call-1", "", None])
    if message["role"] == "assistant" and chance.random() < 0.5:
        call = {"name": "paint", "arguments": chance.choice(["{}", "{", "", "null", "5"])}
        message["tool_calls"] = [{"id": "call-1", "type": "function", "function": call}]
        message["content"] = chance.choice([None, "", message["content"]])
    return message


def messages(chance: random.Random) -> Any:
    """One question as a rule; else a conversation of some turns, or none at all."""
    kind = chance.choices(["question", "turns", "odd"], [10, 4, 0.5])[0]
    if kind == "question":
        return [{"role": "user", "content": content(chance)}]
    if kind == "turns":
        return [_message(chance) for _ in range(chance.randrange(1, 6))]
    return chance.choice([[], None, "What is this?", [None], [{}], [[]], {"role": "user"}])


def tools(chance: random.Random) -> Body:
    """Functions with any schema as their parameters, and whether they must be called."""
    names = [chance.choice(["paint", "count", "", "a b", "x" * 100, "paint"]) for _ in range(3)]
    functions = [
        {"type": "function", "function": {"name": name, "parameters": schema(chance)}}
        for name in names[: chance.choice([0, 1, 1, 2, 3])]
    ]
    named = {"type": "function", "function": {"name": chance.choice(["paint", "missing"])}}
    choice = chance.choice(["auto", "none", "required", "required", "sometimes", named, None, {}])
    body: Body = {"tools": functions, "tool_choice": choice}
    if chance.random() < 0.2:
        body["parallel_tool_calls"] = chance.choice([True, False, "yes"])
    return body
