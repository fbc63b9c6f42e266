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
from collections.abc import Iterator, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from typing import Any, Final

import uvloop
from dynamo.common.configuration.utils import add_argument
from dynamo.frontend.frontend_args import FrontendArgGroup
from dynamo.frontend.main import main as dynamo_main

from dynamo.sglang_mm_resume.args import BadArgument, exit_on_bad_argument
from dynamo.sglang_mm_resume.config import SettingSpec
from dynamo.sglang_mm_resume.workers.relay import RETRY_STATUSES, relay

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

# How long Dynamo holds back the status of a streamed answer, as its first event may be an error.
# Off by default there. No token is later for it; longer than any wait for a peer or for blocks.
_PEEK_ENV: Final = "DYN_HTTP_PRE_COMMIT_ERROR_PEEK_MS"
_PEEK_MS: Final = "60000"

# Dynamo's, with Dynamo's default.
_BODY_LIMIT_ENV: Final = "DYN_HTTP_BODY_LIMIT_MB"
_BODY_LIMIT_MIB: Final = "45"

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
        retry_after_s, rest = parse_retry_after(argv)
        host, port = relay_address(rest)
        limit_mib = max_body_mib()
        listener = _listener(host, port)
    os.environ.setdefault(_PEEK_ENV, _PEEK_MS)
    with listener, _reserved_port() as own_port:
        # The last one counts.
        sys.argv[1:] = [*rest, "--http-host", _LOOPBACK, "--http-port", str(own_port)]
        upstream = f"http://{_LOOPBACK}:{own_port}"
        with _in_thread(relay(listener, upstream, retry_after_s, limit_mib)):
            dynamo_main()


def max_body_mib() -> int:
    """The largest request body that Dynamo's server takes. Raises BadArgument."""
    text = os.environ.get(_BODY_LIMIT_ENV, _BODY_LIMIT_MIB)
    if not text.isdecimal():
        raise BadArgument(f"{_BODY_LIMIT_ENV}: {text!r} is not a whole number of MiB")
    return int(text)


def print_help() -> None:
    """Print our option on stdout, then Dynamo's."""
    print(f"usage: {PROG} [options]\n")
    print(_build_parser().format_help(), flush=True)
    _dynamo_parser().print_help()


def parse_retry_after(argv: Sequence[str]) -> tuple[int, list[str]]:
    """Seconds for `Retry-After`, and the arguments that are Dynamo's.

    Raises BadArgument for a value that is no positive whole number.
    """
    try:
        given, rest = _build_parser().parse_known_args(argv)
    except argparse.ArgumentError as error:
        raise BadArgument(f"{RETRY_AFTER.label}: {error.message}") from None
    return given.retry_after, rest


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
    add_argument(
        parser.add_argument_group("Relay options"),
        flag_name=RETRY_AFTER.flag,
        env_var=RETRY_AFTER.env,
        default=DEFAULT_RETRY_AFTER_S,
        help=f"{RETRY_AFTER.text}\nunit: {RETRY_AFTER.unit}",
        arg_type=_seconds,
        env_value_type=str,
        metavar="VALUE",
    )
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


def _seconds(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        raise BadArgument(
            f"{RETRY_AFTER.label}: {text!r} is not a whole number of {RETRY_AFTER.unit}"
        ) from None
    complaint = RETRY_AFTER.complaint(value)
    if complaint is not None:
        raise BadArgument(f"{RETRY_AFTER.label}: {complaint}")
    return value


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
