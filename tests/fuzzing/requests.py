# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""The i-th request of a seed: always the same, whatever was sent before it."""

from __future__ import annotations

import json
import random
from dataclasses import asdict, dataclass, field
from typing import Any

from tests.fuzzing.grammars import guided
from tests.fuzzing.messages import image_url, messages, text, tools
from tests.fuzzing.sampling import (
    TOKEN_IDS,
    drawn_with,
    floor_and_ends,
    length,
    sampling,
    token_ids,
)
from tests.support.client import data_url
from tests.support.deployments import MODEL_NAME
from tests.support.hostile_media import MIB, inline
from tests.support.pictures import patchwork

Body = dict[str, Any]

CHAT = "chat/completions"
TEXT = "completions"
_PLAIN_IMAGE = data_url(patchwork(930, 4, 4))


@dataclass(frozen=True)
class Request:
    """What is sent, and how long its client waits for the answer."""

    path: str
    body: Any
    """JSON, or a text that is sent as it is."""
    headers: dict[str, str] = field(default_factory=dict)
    hang_up_after_s: float | None = None
    name: str = ""
    """For people: `seed/index`, or what it is an example of."""

    @property
    def content(self) -> bytes:
        """The body as it is sent. Lone surrogates stay escapes, as JSON allows them."""
        if isinstance(self.body, str):
            return self.body.encode("utf-8", "surrogatepass")
        return json.dumps(self.body).encode()

    @property
    def as_dict(self) -> Body:
        """For a file; `Request(**...)` makes it again."""
        return asdict(self)


def request_of(seed: int, index: int) -> Request:
    """The request with this number."""
    chance = random.Random(f"{seed}/{index}")  # the same for all versions of Python
    makers = [_chat, _guided_chat, _tool_chat, _floor, _drawn, _text, _odd_chat, _raw, _heavy]
    made: Request = chance.choices(makers, [6, 5, 2, 2, 3, 3, 2, 1, 0.3])[0](chance)
    return Request(
        made.path,
        made.body,
        {**_headers(chance), **made.headers},
        chance.uniform(0, 0.5) if chance.random() < 0.1 else None,
        f"{seed}/{index}",
    )


# --- Kinds ---


def _chat(chance: random.Random) -> Request:
    return _asked(chance, {"messages": messages(chance), **sampling(chance)})


def _guided_chat(chance: random.Random) -> Request:
    return _asked(chance, {"messages": _question(chance), **guided(chance), **_some(chance)})


def _tool_chat(chance: random.Random) -> Request:
    return _asked(chance, {"messages": messages(chance), **tools(chance), **_some(chance)})


def _floor(chance: random.Random) -> Request:
    """Beside others in a batch, as the floor of one is laid over all."""
    return _asked(chance, {"messages": _question(chance), **floor_and_ends(chance)})


def _drawn(chance: random.Random) -> Request:
    return _asked(chance, {"messages": _question(chance), **drawn_with(chance)})


def _text(chance: random.Random) -> Request:
    body = {"prompt": _prompt(chance), **sampling(chance)}
    if chance.random() < 0.3:
        body |= guided(chance)
    return _asked(chance, body, TEXT)


def _odd_chat(chance: random.Random) -> Request:
    """A good question, with fields of Dynamo's own or of nobody's."""
    return _asked(chance, {"messages": _question(chance), **_odd_fields(chance)})


def _raw(chance: random.Random) -> Request:
    good = json.dumps({"model": MODEL_NAME, "messages": _question(chance), "max_tokens": 4})
    cut = chance.randrange(len(good))
    bodies = [
        *("", " ", "null", "[]", "5", '"text"', "{", "\0", "\ud800", "{" * 10_000, "[" * 100_000),
        good[:cut],
        good[:cut] + chance.choice('{}[]",:\0') + good[cut + 1 :],
        good.replace('"max_tokens": 4', '"max_tokens": NaN'),
        good.replace('"max_tokens": 4', '"max_tokens": 1e400'),
        good.replace('"max_tokens": 4', f'"max_tokens": {"9" * 5_000}'),
        good.replace('"max_tokens": 4', '"max_tokens": 4, "max_tokens": 5'),
        good.replace('"max_tokens": 4', f'"metadata": {"[" * 200}{"]" * 200}'),
    ]
    return Request(chance.choice([CHAT, TEXT]), chance.choice(bodies))


def _heavy(chance: random.Random) -> Request:
    """A body that comes near a limit of its size, or goes beyond it."""
    part = inline(bytes(chance.choice([5, 8, 11]) * MIB))
    count = chance.choice([1, 2, 3, 4])
    parts = [{"type": "image_url", "image_url": {"url": part}}] * count
    return _asked(chance, {"messages": [{"role": "user", "content": parts}]})


# --- Parts of them ---


def _asked(chance: random.Random, body: Body, path: str = CHAT) -> Request:
    model = MODEL_NAME if chance.random() < 0.98 else chance.choice(["", "missing", None, 5])
    asked = {"model": model, **length(chance), **body}
    if "temperature" not in asked and chance.random() < 0.6:
        asked["temperature"] = 0
    if chance.random() < 0.5:
        asked["stream"] = True
        if chance.random() < 0.5:
            asked["stream_options"] = {"include_usage": True}
    return Request(path, asked)


def _question(chance: random.Random) -> list[Body]:
    """About an image as often as not."""
    parts: list[Body] = [{"type": "text", "text": "What is this?"}]
    if chance.random() < 0.5:
        parts.insert(0, {"type": "image_url", "image_url": {"url": _PLAIN_IMAGE}})
    return [{"role": "user", "content": parts}]


def _some(chance: random.Random) -> Body:
    """Sampling fields, in one case of three."""
    return sampling(chance) if chance.random() < 0.3 else {}


def _prompt(chance: random.Random) -> Any:
    kinds = [
        lambda: text(chance),
        lambda: token_ids(chance, 20),
        lambda: [text(chance) for _ in range(chance.randrange(4))],
        lambda: [token_ids(chance) for _ in range(chance.randrange(4))],
        lambda: chance.choice([None, 5, "", [], [[]], [""], [1.5], [1, "a"], [[1], "a"], {}]),
    ]
    return chance.choices(kinds, [3, 5, 1, 1, 1])[0]()


def _odd_fields(chance: random.Random) -> Body:
    ids = token_ids(chance, 20)
    number = chance.choice(TOKEN_IDS)
    hints = {"priority": number, "osl": chance.choice(TOKEN_IDS), "speculative_prefill": True}
    nvext = [
        {"token_data": ids},
        {"token_data": ids, "use_raw_prompt": True},
        {"greed_sampling": True},
        {"backend_instance_id": abs(number)},
        {"prefill_worker_id": abs(number), "decode_worker_id": abs(number)},
        {"dp_rank": number, "prefill_dp_rank": abs(number)},
        {"agent_hints": hints},
        {"annotations": chance.choice([["formatted_prompt", "token_ids"], ["\0"], "x", [5]])},
        {"annotations": ["query_instance_id:"]},
        {"annotations": ["x-bypass-remote-prefill"]},
        {"extra_fields": ["worker_id", "timing", "engine_data", "stop_reason", "nothing"]},
        {"extra_fields": ["completion_token_ids"]},
        {"max_thinking_tokens": number},
        {"cache_salt": chance.choice(["", "x", "x" * 100_000, 5])},
        {"routing_constraints": chance.choice([{}, {"required_taints": ["x"]}, 5])},
        {"request_timestamp_ms": number},
        {"metadata_upload": {"url": "http://127.0.0.1:9/"}},
        {"no_such_field": 1},
        chance.choice([None, [], 5, "x"]),
    ]
    fields = [
        *({"nvext": value} for value in nvext),
        {"mm_processor_kwargs": chance.choice([{"max_pixels": 1}, {"fps": -1}, {"x": "y"}, [], 5])},
        {"media_io_kwargs": chance.choice([{"video": {"num_frames": -1}}, {"image": 5}, []])},
        {"chat_template_args": chance.choice([{"enable_thinking": True}, {"messages": 5}, 5])},
        {"chat_template_kwargs": chance.choice([{"tokenize": True}, {"tools": "x"}])},
        {"chat_template": "{% for i in range(10**9) %}x{% endfor %}"},
        {"add_generation_prompt": False},
        {"continue_final_message": True},
        {"reasoning_effort": chance.choice(["low", "high", "most", 5])},
        {"thinking": {"type": "enabled", "budget_tokens": number}},
        {"multi_modal_data": {"image_url": [{"Url": image_url(chance)}]}},
        {"mm_resume": [{}], "mm_resume_local": [{}], "mm_resume_rooms": [1]},
        {"data_parallel_rank": number},
        {"lora_path": "/etc/passwd"},
        {"stop_regex": "(a{1000}){1000}"},
        {"custom_params": {"thinking_budget": number}},
        {"custom_logit_processor": "x"},
        {"image_data": ["file:///etc/passwd"], "input_ids": ids},
        {"modalities": chance.choice([["text", "audio"], ["image"], 5])},
        {"metadata": chance.choice([{"a": "b"}, {"a": {"b": [1]}}, 5])},
        {"store": True},
        {"service_tier": chance.choice(["flex", "gold"])},
        {"prediction": {"type": "content", "content": "x"}},
    ]
    return chance.choice(fields)


def _headers(chance: random.Random) -> dict[str, str]:
    """Mostly none. The few ids meet those of other requests under way."""
    if chance.random() < 0.85:
        return {}
    identity = chance.choice(
        ["fuzz-1", "fuzz-2", "00000000-0000-0000-0000-000000000001", "x" * 999]
    )
    names = ["x-dynamo-request-id", "x-dynamo-request-id", "x-request-id", "x-session-id"]
    odd = [
        {chance.choice(names): identity},
        {"traceparent": chance.choice(["00-0-0-0", f"00-{'1' * 32}-{'2' * 16}-01", "x"])},
        {"content-type": chance.choice(["text/plain", "", "application/json; charset=utf-16"])},
        {"accept": chance.choice(["text/event-stream", "image/png"])},
        {"expect": "100-continue"},
        {"x-dynamo-worker-instance-id": chance.choice(["1", "x", "-1"])},
        {"x-dynamo-prefill-instance-id": "1", "x-dynamo-dp-rank": "7"},
        {"authorization": "Bearer x"},
    ]
    return chance.choice(odd)
