# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Starts Dynamo's frontend with a relay in front of it, in one process.

Dynamo's `main` runs as ever, with the signals and the main thread; its server moves to a port on
loopback. The relay has the address that the flags name, and a thread of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from typing import Any, Final

import uvloop
from dynamo.frontend.frontend_args import FrontendArgGroup
from dynamo.frontend.main import main as dynamo_main

from dynamo.sglang_mm_resume.args import BadArgument, add_setting, exit_on_bad_argument, parse_value
from dynamo.sglang_mm_resume.config import MAX_MEDIA_ITEMS, Settings, SettingSpec
from dynamo.sglang_mm_resume.workers.content import CHAT, MESSAGES, RESPONSES, Api
from dynamo.sglang_mm_resume.workers.limits import max_body_mib, raise_message_limit
from dynamo.sglang_mm_resume.workers.relay import RETRY_STATUSES, Rules, relay

PROG: Final = "python -m dynamo.sglang_mm_resume.frontend"

RETRY_AFTER: Final = SettingSpec(
    "--retry-after",
    "DYN_SGL_MM_RESUME_RETRY_AFTER_S",
    "seconds",
    "Value of the header Retry-After on answers that have none and whose status is one of "
    f"{', '.join(map(str, sorted(RETRY_STATUSES)))}.",
    maximum=86_400,
)
DEFAULT_RETRY_AFTER_S: Final = 1
CHECK_CONTENT: Final = SettingSpec(
    "--check-content",
    "DYN_SGL_MM_RESUME_CHECK_CONTENT",
    "yes or no",
    "Refuse content that Dynamo's frontend would leave out without a word, and requests with too "
    "many media items. Without it, for models of other components whose workers take such content.",
)
#: Of the flags, those that are not Dynamo's.
OPTIONS: Final = (RETRY_AFTER, CHECK_CONTENT, MAX_MEDIA_ITEMS)

# How long Dynamo holds back the status of a streamed answer, as its first event may be an error.
# Off by default there. No token is later for it; longer than any wait for a peer or for blocks.
_PEEK_ENV: Final = "DYN_HTTP_PRE_COMMIT_ERROR_PEEK_MS"
_PEEK_MS: Final = "60000"

#: Where Dynamo serves what takes conversations, unless its variables say otherwise. The last two
#: also count tokens, below their own paths.
_CHAT_PATH: Final = ("DYN_HTTP_SVC_CHAT_PATH", "/v1/chat/completions")
_RESPONSES_PATH: Final = ("DYN_HTTP_SVC_RESPONSES_PATH", "/v1/responses")
_ANTHROPIC_PATH: Final = ("DYN_HTTP_SVC_ANTHROPIC_PATH", "/v1/messages")
PATH_ENVS: Final = (_CHAT_PATH[0], _RESPONSES_PATH[0], _ANTHROPIC_PATH[0])

_LOOPBACK: Final = "127.0.0.1"
_USE_DYNAMO_S: Final = "use python -m dynamo.frontend"
#: What the relay cannot stand in front of, and what to do.
_REFUSED: Final = {
    "tls_cert_path": "--tls-cert-path (DYN_TLS_CERT_PATH): end TLS in a proxy in front",
    "tls_key_path": "--tls-key-path (DYN_TLS_KEY_PATH): end TLS in a proxy in front",
    "interactive": f"--interactive: there is no HTTP server; {_USE_DYNAMO_S}",
    "kserve_grpc_server": f"--kserve-grpc-server: gRPC is not relayed; {_USE_DYNAMO_S}",
}


def run() -> None:
    """Run until a signal ends it. Exits with 2 on a bad argument or an address that is taken."""
    argv = sys.argv[1:]
    if "-h" in argv or "--help" in argv:
        print_help()
        return
    with exit_on_bad_argument():
        raise_message_limit()
        options, rest = parse_options(argv)
        host, port = relay_address(rest)
        rules = rules_of(options)
        listener = _listener(host, port)
    os.environ.setdefault(_PEEK_ENV, _PEEK_MS)
    with listener, _reserved_port() as own_port:
        # The last one counts.
        sys.argv[1:] = [*rest, "--http-host", _LOOPBACK, "--http-port", str(own_port)]
        upstream = f"http://{_LOOPBACK}:{own_port}"
        with _in_thread(relay(listener, upstream, rules)):
            dynamo_main()


def rules_of(options: argparse.Namespace) -> Rules:
    """What the relay has to know. Raises BadArgument for limits that contradict each other."""
    return Rules(
        options.retry_after,
        max_body_mib(),
        options.max_media_items,
        conversations() if options.check_content else {},
    )


def conversations(environ: Mapping[str, str] = os.environ) -> dict[str, Api]:
    """The paths of Dynamo's endpoints that take conversations."""
    chat, responses, anthropic = (
        environ.get(env) or default
        for env, default in (_CHAT_PATH, _RESPONSES_PATH, _ANTHROPIC_PATH)
    )
    return {
        chat: CHAT,
        responses: RESPONSES,
        f"{responses}/input_tokens": RESPONSES,
        anthropic: MESSAGES,
        f"{anthropic}/count_tokens": MESSAGES,
    }


def print_help() -> None:
    """Print our options on stdout, then Dynamo's."""
    print(f"usage: {PROG} [options]\n")
    print(_build_parser().format_help(), flush=True)
    _dynamo_parser().print_help()


def parse_options(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Our options, and the arguments that are Dynamo's.

    `retry_after` (seconds), `check_content`, `max_media_items`. Raises BadArgument for an illegal
    value.
    """
    try:
        options, rest = _build_parser().parse_known_args(argv)
    except argparse.ArgumentError as error:
        flags = (error.argument_name or "").split("/")
        label = next((spec.label for spec in OPTIONS if spec.flag in flags), error.argument_name)
        raise BadArgument(f"{label}: {error.message}") from None
    # argparse converts text from the environment for every action but the boolean one.
    options.check_content = parse_value(CHECK_CONTENT, bool, options.check_content)
    for spec, value in (
        (RETRY_AFTER, options.retry_after),
        (MAX_MEDIA_ITEMS, options.max_media_items),
    ):
        complaint = spec.complaint(value)
        if complaint is not None:
            raise BadArgument(f"{spec.label}: {complaint}")
    return options, rest


def relay_address(argv: Sequence[str]) -> tuple[str, int]:
    """Host and port that Dynamo would serve on, from the flags or the environment.

    Raises BadArgument for what the relay cannot stand in front of.
    """
    config, _ = _dynamo_parser().parse_known_args(argv)
    for name, complaint in _REFUSED.items():
        if getattr(config, name):
            raise BadArgument(complaint)
    return config.http_host, config.http_port


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        add_help=False,
        allow_abbrev=False,
        exit_on_error=False,
        usage=argparse.SUPPRESS,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    group = parser.add_argument_group("Relay options")
    add_setting(group, "retry_after", RETRY_AFTER, DEFAULT_RETRY_AFTER_S)
    add_setting(group, "check_content", CHECK_CONTENT, True)
    add_setting(group, "max_media_items", MAX_MEDIA_ITEMS, Settings().max_media_items)
    return parser


def _dynamo_parser() -> argparse.ArgumentParser:
    """Dynamo's own, for what the relay has to know; Dynamo parses the same again for itself."""
    parser = argparse.ArgumentParser(
        prog=PROG,
        add_help=False,
        usage=argparse.SUPPRESS,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    FrontendArgGroup().add_arguments(parser)
    return parser


def _listener(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        raise BadArgument(f"--http-host, --http-port: {host}:{port}: {error}") from None


@contextmanager
def _reserved_port() -> Iterator[int]:
    """A free port on loopback for Dynamo's server.

    Held by a socket that does not listen: nobody else is given the port in the meantime, while
    Dynamo, which binds it by its number and with SO_REUSEADDR too, can have it.
    """
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind((_LOOPBACK, 0))
        yield holder.getsockname()[1]


@contextmanager
def _in_thread(context: AbstractAsyncContextManager[None]) -> Iterator[None]:
    """Enter and leave `context` on an event loop in a thread of its own."""
    loop = uvloop.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="relay", daemon=True)
    thread.start()

    def call(coroutine: Any) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, loop).result()

    try:
        call(context.__aenter__())
        try:
            yield
        finally:
            call(context.__aexit__(None, None, None))
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
