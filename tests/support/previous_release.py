# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""The one entry point of the release before, as far as its peers can tell.

python -m tests.support.previous_release  # arguments as of dynamo.sglang_mm_resume

It speaks and understands protocol version 2 alone: of what version 3 has added nothing is sent,
and a message that has any of it is malformed.
"""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter

VERSION = 2
NEW_FIELDS = frozenset({"timestamps", "second_per_grid", "lent"})
NEW_VALUES = {"modality": "video", "reason": "draining"}
HASH_DIGITS = 16


def is_newer(payload: Any) -> bool:
    """Whether version 2 would not know some of this."""
    if isinstance(payload, dict):
        new = NEW_FIELDS & set(payload) or any(payload.get(k) == v for k, v in NEW_VALUES.items())
        whole_hash = len(payload.get("content_hash") or "") > HASH_DIGITS
        return bool(new) or whole_hash or any(map(is_newer, payload.values()))
    return isinstance(payload, list | tuple) and any(map(is_newer, payload))


if __name__ == "__main__":
    # In this order: the modules take the constants over as they are imported.
    from dynamo.sglang_mm_resume.core import layout

    setattr(layout, "PROTOCOL_VERSION", VERSION)  # noqa: B010
    setattr(layout, "SPOKEN", (VERSION,))  # noqa: B010
    layout.Layout.model_fields["protocol_version"].default = VERSION
    layout.Layout.model_rebuild(force=True)

    from dynamo.sglang_mm_resume.core import messages
    from dynamo.sglang_mm_resume.core.errors import ProtocolError

    parse, dump = messages.parse, messages.dump

    def parse_as_before(adapter: TypeAdapter[Any], payload: Any) -> Any:
        message = parse(adapter, payload)  # another version is refused first
        if is_newer(payload):
            raise ProtocolError("malformed message: version 2 has no such field")
        return message

    def dump_as_before(message: messages.Message, version: int = VERSION) -> dict[str, Any]:
        payload = dump(message, version)
        assert payload["v"] == VERSION
        assert not is_newer(payload)
        return payload

    messages.parse, messages.dump = parse_as_before, dump_as_before

    from dynamo.sglang_mm_resume.workers import request

    setattr(request, "HASHES_KEY", "no key of version 2")  # noqa: B010

    from dynamo.sglang_mm_resume.workers.role import run_role

    run_role()
