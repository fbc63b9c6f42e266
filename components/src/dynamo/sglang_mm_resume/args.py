# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Flags and environment variables to ``Settings``; a flag wins over the environment.

Takes our flags out of a command line and leaves the rest to the parsers of Dynamo and SGLang. Some
of the environment names are read by SGLang's own KV disaggregation as well: that is intended, one
value then holds for both.
"""

import argparse
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from dynamo.common.configuration.arg_group import ArgGroup
from dynamo.common.configuration.utils import add_argument, add_negatable_bool_argument
from pydantic import ValidationError

from dynamo.sglang_mm_resume.config import (
    BLOCK_SIZE,
    DEFAULT_BLOCKS,
    Settings,
    SettingSpec,
    spec_of,
)

logger = logging.getLogger(__name__)

BOOTSTRAP_ADDR_ENV = "SGLANG_DISAGGREGATION_BOOTSTRAP_ADDR"

# Not a field of Settings: the older spelling of `default_blocks`, in tokens.
DEFAULT_TOKENS = SettingSpec(
    "--default-multimodal-buffer-tokens",
    "SGLANG_DEFAULT_MULTIMODAL_BUFFER_TOKENS",
    "tokens",
    f"The same as {DEFAULT_BLOCKS.flag}, in tokens: a multiple of the block size, and in agreement "
    "with the blocks where both are given.",
)
_DEFAULT_TOKENS_DEST = "default_tokens"

_TRUE = frozenset({"1", "true", "on", "yes", "y"})
_FALSE = frozenset({"0", "false", "off", "no", "n"})


class BadArgument(Exception):
    """A flag or an environment variable has an illegal value, contradicts another, or asks for
    what this machine does not have. The text names it. Starting again would not help.
    """


@contextmanager
def exit_on_bad_argument() -> Iterator[None]:
    """For entry points: a `BadArgument` is one line on stderr and exit code 2."""
    try:
        yield
    except BadArgument as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error


class ResumeArgGroup(ArgGroup):
    """One flag per setting, with its environment name, unit and default in the help.

    Values from the environment stay text until the command line is parsed, so that building the
    parser (and printing its help) cannot fail, and a flag replaces a broken variable.
    """

    name = "dynamo-sglang-mm-resume"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the flags of every setting to `parser`."""
        group = parser.add_argument_group("Multimodal resume options")
        for name, field in Settings.model_fields.items():
            add_setting(group, name, spec_of(name), field.default)
            if name == "default_blocks":
                add_setting(group, _DEFAULT_TOKENS_DEST, DEFAULT_TOKENS, Settings().default_tokens)


def build_parser() -> argparse.ArgumentParser:
    """A parser of our flags alone; it knows no ``--help`` and no abbreviations."""
    parser = argparse.ArgumentParser(
        add_help=False,
        allow_abbrev=False,
        exit_on_error=False,
        usage=argparse.SUPPRESS,
        formatter_class=argparse.RawTextHelpFormatter,
        epilog=f"{BOOTSTRAP_ADDR_ENV} is accepted and not used: Dynamo's discovery replaces it.",
    )
    ResumeArgGroup().add_arguments(parser)
    return parser


def parse_settings(argv: Sequence[str]) -> tuple[Settings, list[str]]:
    """Split `argv` into our settings and the arguments that belong to somebody else.

    Raises BadArgument for a value that is illegal or conflicts.
    """
    try:
        given, rest = _given(argv)
        return Settings(**_with_default_blocks(given)), rest
    except argparse.ArgumentError as error:
        raise BadArgument(_one_line(error)) from error
    except ValidationError as error:
        raise BadArgument(error.errors()[0]["msg"]) from error


def print_help(prog: str, upstream_help: Callable[[], object] | None = None) -> None:
    """Print our options on stdout, then what `upstream_help` prints about the others."""
    print(f"usage: {prog} [options]\n")
    print(build_parser().format_help(), flush=True)
    if upstream_help is not None:
        upstream_help()


def bootstrap_addr_notice(environ: Mapping[str, str] | None = None) -> str | None:
    """The line that explains a bootstrap address found in `environ`; None where there is none."""
    address = (os.environ if environ is None else environ).get(BOOTSTRAP_ADDR_ENV)
    if not address:
        return None
    return (
        f"{BOOTSTRAP_ADDR_ENV}={address} is not used: "
        "workers find each other through Dynamo's discovery, without a bootstrap server"
    )


def log_bootstrap_addr_notice() -> None:
    """Explain a bootstrap address in the environment; to be called once, when a worker starts."""
    notice = bootstrap_addr_notice()
    if notice is not None:
        logger.info(notice)


def add_setting(group: argparse._ArgumentGroup, dest: str, spec: SettingSpec, default: Any) -> None:
    """One flag for a setting; `dest` is its name among the parsed values."""
    text = f"{spec.text}\nunit: {spec.unit}".replace("%", "%%")
    common: dict[str, Any] = {
        "flag_name": spec.flag,
        "env_var": spec.env,
        "default": default,
        "help": text,
        "dest": dest,
        "env_value_type": str,
    }
    if isinstance(default, bool):
        add_negatable_bool_argument(group, **common)
    else:
        kind = int if default is None else type(default)
        add_argument(group, **common, arg_type=partial(parse_value, spec, kind), metavar="VALUE")


def _given(argv: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """The values that a flag or the environment really gives, by setting, and the other arguments.

    Raises BadArgument or argparse.ArgumentError for a value that cannot be read.
    """
    parser = build_parser()
    specs = {name: spec_of(name) for name in Settings.model_fields}
    specs[_DEFAULT_TOKENS_DEST] = DEFAULT_TOKENS
    # What neither gives becomes None, to be told from a default that was given explicitly.
    parser.set_defaults(
        **{dest: None for dest, spec in specs.items() if spec.env not in os.environ}
    )
    values, rest = parser.parse_known_args(argv)
    given = {dest: value for dest, value in vars(values).items() if value is not None}
    # argparse converts text from the environment for every action but the boolean one.
    for name, field in Settings.model_fields.items():
        if field.annotation is bool and name in given:
            given[name] = parse_value(specs[name], bool, given[name])
    return given, rest


def _with_default_blocks(given: dict[str, Any]) -> dict[str, Any]:
    """Replace the default grant in tokens, where it is given, by the same in blocks.

    Raises BadArgument where it is no whole number of blocks or contradicts the blocks given.
    """
    if _DEFAULT_TOKENS_DEST not in given:
        return given
    rest = dict(given)
    tokens = rest.pop(_DEFAULT_TOKENS_DEST)
    # Checked first: what is wrong with the block size itself is not for this function to say.
    block_size = Settings(**{k: v for k, v in rest.items() if k == "block_size"}).block_size
    complaint = DEFAULT_TOKENS.complaint(tokens)
    if complaint is None and tokens % block_size:
        complaint = f"{tokens} is not a multiple of {block_size}, the value of {BLOCK_SIZE.label}"
    blocks = rest.setdefault("default_blocks", tokens // block_size)
    if complaint is None and blocks * block_size != tokens:
        complaint = (
            f"{tokens} tokens contradict {DEFAULT_BLOCKS.label}: "
            f"{blocks} blocks of {block_size} tokens are {blocks * block_size}"
        )
    if complaint is not None:
        raise BadArgument(f"{DEFAULT_TOKENS.label}: {complaint}")
    return rest


def parse_value(spec: SettingSpec, kind: type, text: str | bool) -> Any:
    """Read `text` as a value of type `kind`; raises BadArgument where that is not possible."""
    if isinstance(text, bool) or kind is str:
        return text
    if kind is bool:
        return _parse_bool(spec, text)
    try:
        return kind(text)
    except ValueError:
        whole = "a whole number" if kind is int else "a number"
        raise BadArgument(f"{spec.label}: {text!r} is not {whole} of {spec.unit}") from None


def _parse_bool(spec: SettingSpec, text: str) -> bool:
    word = text.strip().lower()
    if word in _TRUE | _FALSE:
        return word in _TRUE
    # Dynamo itself reads any other word as false.
    raise BadArgument(f"{spec.label}: {text!r} is neither true nor false")


def _one_line(error: argparse.ArgumentError) -> str:
    """The text of `error` with flag and environment name."""
    flags = (error.argument_name or "").split("/")
    specs = [DEFAULT_TOKENS, *(spec_of(name) for name in Settings.model_fields)]
    label = next((spec.label for spec in specs if spec.flag in flags), error.argument_name)
    return f"{label}: {error.message}"
