# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Which parts of a conversation reach a model, and which ones Dynamo's frontend would leave out.

Dynamo 1.6 answers 200 to a request whose `input_audio` it has dropped; the workers behind it never
see that part. So the body is checked in front of it, against a list of what was seen to arrive
(tests/workers/test_content_arrives.py asks Dynamo itself). What is not on the list is refused by
name.

Only types and roles are decoded; all else is skipped without a copy. On one core: 1 µs for a body
of 1 KB, 0.4 ms for 1 MB, 25 ms for 45 MiB. The decoder holds the interpreter's lock, so a thread
would not help, and handing a large body to another process costs as much as decoding it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

import msgspec

from dynamo.sglang_mm_resume.config import MAX_MEDIA_ITEMS

#: JSON objects that a body may have. The largest body made of empty objects would take two seconds
#: to decode; a text with so many braces is longer than any model's context.
MAX_OBJECTS: Final = 2**18
#: Smaller bodies are not counted: they cannot take long.
_COUNTED_FROM_BYTES: Final = 2**22

#: By role: the types of parts that reach the model. A role that is not here is left to Dynamo.
Taken = Mapping[str, frozenset[str]]

_TEXT: Final = frozenset({"text"})
_CHAT: Final[Taken] = {
    "system": _TEXT,
    "developer": _TEXT,
    "user": _TEXT | {"image_url", "video_url", "audio_url"},
    "assistant": _TEXT,
    "tool": _TEXT | {"image_url", "video_url", "audio_url"},
    "function": _TEXT,
}
_RESPONSES: Final[Taken] = {
    "system": frozenset({"input_text"}),
    "developer": frozenset({"input_text"}),
    "user": frozenset({"input_text", "input_image"}),
    "assistant": frozenset({"input_text", "output_text", "refusal"}),
}
_RESPONSES_ITEMS: Final = frozenset(
    {"message", "function_call", "function_call_output", "reasoning"}
)
_MESSAGES: Final[Taken] = {
    "user": _TEXT | {"image", "tool_result"},
    "assistant": _TEXT | {"tool_use", "thinking"},
}
_MESSAGES_TOOL_RESULT: Final = _TEXT | {"image"}
_MEDIA: Final = frozenset({"image_url", "video_url", "audio_url", "input_image", "image"})
#: Dynamo passes it on, but no model of ours takes it: no advice to send it.
_NOT_ADVISED: Final = frozenset({"audio_url"})


class _Part(msgspec.Struct, gc=False):
    type: str = ""
    content: "str | list[_Part] | None" = None


class _Message(msgspec.Struct, gc=False):
    type: str = "message"
    role: str = ""
    content: str | list[_Part] | None = None
    output: str | list[_Part] | dict[str, msgspec.Raw] | None = None
    audio: None = None
    refusal: None = None


@dataclass(frozen=True, slots=True)
class _Found:
    """A part or an item of a request. `taken`: the types that reach the model at this place."""

    place: str
    type: str
    taken: frozenset[str]


class _Body(Protocol):
    def found(self) -> Iterator[_Found]: ...


class _Chat(msgspec.Struct, gc=False):
    """/v1/chat/completions"""

    messages: list[_Message] = []
    audio: None = None

    def found(self) -> Iterator[_Found]:
        for i, message in enumerate(self.messages):
            yield from _parts(f"messages[{i}].content", message.content, _CHAT.get(message.role))


class _Responses(msgspec.Struct, gc=False):
    """/v1/responses"""

    input: str | list[_Message] = ""
    conversation: None = None

    def found(self) -> Iterator[_Found]:
        for i, item in enumerate(self.input if isinstance(self.input, list) else ()):
            yield _Found(f"input[{i}]", item.type, _RESPONSES_ITEMS)
            yield from _parts(f"input[{i}].content", item.content, _RESPONSES.get(item.role))
            yield from _parts(f"input[{i}].output", item.output, _RESPONSES["user"])


class _Messages(msgspec.Struct, gc=False):
    """/v1/messages"""

    messages: list[_Message] = []
    system: str | list[_Part] | None = None

    def found(self) -> Iterator[_Found]:
        yield from _parts("system", self.system, _TEXT)
        for i, message in enumerate(self.messages):
            place = f"messages[{i}].content"
            yield from _parts(place, message.content, _MESSAGES.get(message.role))
            for j, part in enumerate(message.content if isinstance(message.content, list) else ()):
                if part.type == "tool_result":
                    inner = f"{place}[{j}].content"
                    yield from _parts(inner, part.content, _MESSAGES_TOOL_RESULT)


def _parts(place: str, content: Any, taken: frozenset[str] | None) -> Iterator[_Found]:
    if isinstance(content, list) and taken is not None:
        for i, part in enumerate(content):
            yield _Found(f"{place}[{i}]", part.type, taken)


@dataclass(frozen=True, slots=True)
class Api:
    """An endpoint that takes conversations."""

    decoder: "msgspec.json.Decoder[_Body]"
    is_anthropic: bool = False

    def complaint(self, body: bytes | bytearray, max_media_items: int) -> str | None:
        """Why the body must be refused, with the place and what to change; None if it need not be.

        A body that cannot be decoded is refused too: nobody would know what is in it.
        """
        if len(body) > _COUNTED_FROM_BYTES and body.count(b"{") > MAX_OBJECTS:
            return f"the body has more than {MAX_OBJECTS} JSON objects: send a shorter conversation"
        try:
            decoded = self.decoder.decode(body)
        except RecursionError:
            return "the body is nested too deeply"
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            return f"the body is not a valid request: {error!s:.300}"
        return _complaint(decoded.found(), max_media_items)

    def refusal(self, text: str) -> dict[str, Any]:
        """The body of an answer with status 400, in the form of the endpoint's other errors."""
        if self.is_anthropic:
            error = {"type": "invalid_request_error", "message": text}
            return {"type": "error", "error": error}
        return {"message": text, "type": "Bad Request", "code": 400}


CHAT: Final = Api(msgspec.json.Decoder(_Chat))
RESPONSES: Final = Api(msgspec.json.Decoder(_Responses))
MESSAGES: Final = Api(msgspec.json.Decoder(_Messages), is_anthropic=True)


def _complaint(found: Iterator[_Found], max_media_items: int) -> str | None:
    num_media = 0
    for one in found:
        if one.type not in one.taken:
            advised = ", ".join(sorted(one.taken - _NOT_ADVISED))
            return (
                f"{one.place}: content of type {one.type[:40]!r} does not reach the model: "
                f"send {advised} there"
            )
        num_media += one.type in _MEDIA
    if num_media > max_media_items:
        return (
            f"{num_media} media items in one request, at most {max_media_items} are accepted "
            f"({MAX_MEDIA_ITEMS.label})"
        )
    return None
