# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""The order of an examination: installation, machine, transports, then the graph and its pairs.

Loads neither torch nor SGLang: what needs torch is done by processes of its own.
"""

import argparse
import asyncio
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from dynamo.common.configuration.groups.runtime_args import (
    DynamoRuntimeArgGroup,
    DynamoRuntimeConfig,
)

from dynamo.sglang_mm_resume.doctor import graph as graphs
from dynamo.sglang_mm_resume.doctor import host, installation, pairs, pools, transports
from dynamo.sglang_mm_resume.doctor.advice import advice
from dynamo.sglang_mm_resume.doctor.gpus import (
    TorchFacts,
    TorchUnusable,
    device_files,
    torch_facts,
)
from dynamo.sglang_mm_resume.doctor.processor_url import NotReached, base_url, namespace_of
from dynamo.sglang_mm_resume.doctor.report import Outcome, Report, Result, Section, fail
from dynamo.sglang_mm_resume.workers.hand_off import Peers
from dynamo.sglang_mm_resume.workers.lifecycle import argument_errors, runtime_of
from dynamo.sglang_mm_resume.workers.start_processor import connect
from dynamo.sglang_mm_resume.workers.status import rdma_devices

PROG: Final = "python -m dynamo.sglang_mm_resume.doctor"
EPILOG: Final = (
    "Exit code: 0 nothing to do, 1 warnings, 2 failures or a bad argument. Workers are found as "
    "they find each other: by DYN_DISCOVERY_BACKEND, ETCD_ENDPOINTS, DYN_FILE_KV, DYN_NAMESPACE "
    "and the other variables and flags of Dynamo's runtime."
)
#: Pixels of a side: 1,024 tokens of Qwen2.5-VL, a default grant of the default settings.
IMAGE_SIZE: Final = 896
MAX_IMAGE_SIZE: Final = 8192
MAX_PAIRS: Final = 16
#: Seconds for finding a graph and asking its workers. Each pair has its own limit.
GRAPH_LIMIT_S: Final = 60.0


def main(argv: Sequence[str]) -> int:
    """Examine, print the report on stdout, and return the exit code, with which to end."""
    options, rest = _parser().parse_known_args(argv)
    config = _runtime_config(rest)
    if options.processor is not None:
        config.namespace = _graph_of(options)
    publish = _take_output(options.verbose)
    report = Report(list(_sections(options, config)))
    publish(report.as_json() if options.json else report.as_text())
    return report.exit_code


# --- Arguments ---


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROG,
        description="Examines the installation, this machine and a running graph.",
        epilog=EPILOG,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--processor",
        type=_url,
        metavar="URL",
        help="System port of a processor (its DYN_SYSTEM_PORT): examine the graph that it is part "
        "of. Default: the graph of --namespace (DYN_NAMESPACE).",
    )
    parser.add_argument("--json", action="store_true", help="Print the report as one JSON object.")
    parser.add_argument(
        "--verbose",
        action="store_true",
        help="Let Dynamo, NIXL and UCX print on stderr what they want to tell meanwhile.",
    )
    parts = parser.add_mutually_exclusive_group()
    parts.add_argument(
        "--local", action="store_true", help="Examine the installation and this machine only."
    )
    parts.add_argument("--graph", action="store_true", help="Examine the graph only.")
    parser.add_argument(
        "--no-transfers",
        action="store_true",
        help="Send no pictures through the pairs of encode and prefill workers.",
    )
    parser.add_argument(
        "--image-size",
        type=_number(MAX_IMAGE_SIZE),
        default=IMAGE_SIZE,
        metavar="PIXELS",
        help=f"Side of those pictures, at most {MAX_IMAGE_SIZE} (default: {IMAGE_SIZE}).",
    )
    parser.add_argument(
        "--max-pairs",
        type=_number(),
        default=MAX_PAIRS,
        metavar="PAIRS",
        help=f"Pairs that get one; others are left out (default: {MAX_PAIRS}).",
    )
    return parser


def _number(maximum: int = 2**31) -> Callable[[str], int]:
    def parse(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
        if not 1 <= number <= maximum:
            raise argparse.ArgumentTypeError(f"{number} is not between 1 and {maximum}")
        return number

    return parse


def _url(text: str) -> str:
    try:
        return base_url(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _runtime_config(rest: Sequence[str]) -> DynamoRuntimeConfig:
    """What Dynamo's own flags and variables say, as for a worker."""
    parser = argparse.ArgumentParser(prog=PROG, add_help=False, allow_abbrev=False)
    DynamoRuntimeArgGroup().add_arguments(parser)
    parser.usage = "%(prog)s [options] (see --help)"  # not the hundred flags of the group
    config = DynamoRuntimeConfig.from_cli_args(parser.parse_args(rest))
    with argument_errors():
        config.validate()
    return config


def _graph_of(options: argparse.Namespace) -> str:
    """The namespace of the processor that is named; empty where it does not answer now."""
    try:
        return asyncio.run(namespace_of(options.processor))
    except NotReached:
        return ""
    except ValueError as error:
        _parser().error(f"argument --processor: {error}")


# --- Sections ---


def _sections(options: argparse.Namespace, config: DynamoRuntimeConfig) -> Iterator[Section]:
    if not options.graph:
        yield from _local()
    if options.local:
        return
    if config.namespace:
        yield from asyncio.run(_graph(options, config))
    else:
        yield Section("Graph", [_processor_is_gone(options.processor)])


def _local() -> Iterator[Section]:
    _say("asking torch for GPUs")
    torch = _torch()
    yield Section("Installation", _installation(torch))
    gpus = torch.gpus if isinstance(torch, TorchFacts) else []
    yield Section("This machine", host.host(gpus))
    yield Section("UCX between two processes of this machine", list(_transports(bool(gpus))))


def _torch() -> TorchFacts | TorchUnusable:
    try:
        return torch_facts()
    except TorchUnusable as error:
        return error


def _installation(torch: TorchFacts | TorchUnusable) -> list[Result]:
    found = [
        installation.python(),
        installation.component(),
        *(installation.package(name) for name in installation.REQUIRED_BY),
    ]
    if isinstance(torch, TorchUnusable):
        action = f"{installation.INSTALL}; look at the driver if torch hangs (nvidia-smi)"
        return [*found, fail("GPU", str(torch), action)]
    driver = installation.driver_version()
    return [
        *found,
        installation.nixl_build(torch.cuda),
        installation.gpu(torch, device_files(), driver),
    ]


def _transports(has_gpu: bool) -> Iterator[Result]:
    for trial in transports.trials(has_gpu, bool(rdma_devices())):
        _say(f"two processes exchange bytes, {trial.name}")
        yield transports.judge(trial, transports.try_out(trial))


def _processor_is_gone(url: str) -> Result:
    return fail(
        "processor",
        f"{url} cannot be reached",
        "start the processor, or look into its log; without --processor, the graph of "
        "--namespace (DYN_NAMESPACE) is examined",
    )


async def _graph(options: argparse.Namespace, config: DynamoRuntimeConfig) -> list[Section]:
    title = f"Graph {config.namespace}"
    _say(f"looking for the workers of namespace {config.namespace}")
    reachable = await graphs.discovery(config.discovery_backend)
    if reachable.outcome is Outcome.FAIL:
        return [Section(title, [reachable])]
    try:
        runtime, _ = runtime_of(config)
    except Exception as error:  # Dynamo raises nothing more specific
        return [Section(title, [reachable, _no_runtime(error)])]
    try:
        async with asyncio.timeout(GRAPH_LIMIT_S):
            graph = await graphs.find(runtime, config.namespace)
            peers = await connect(runtime, config.namespace)
        advised = advice(graph.descriptions("prefill"))  # before ours are among the lengths
        found = [reachable, *graphs.checks(graph), *pools.checks(graph)]
        sections = [Section(title, found)]
        if not options.no_transfers:
            sections.append(Section("Transfers", await _transfers(options, graph, peers)))
        return [*sections, Section("Advice", advised)]
    except TimeoutError:
        return [Section(title, [reachable, _discovery_is_silent()])]
    finally:
        runtime.shutdown()


async def _transfers(
    options: argparse.Namespace, graph: graphs.Graph, peers: Peers
) -> list[Result]:
    number = min(len(pairs.pairs_of(graph)), options.max_pairs)
    if number:
        _say(f"sending a picture of {options.image_size} px through {number} pairs of workers")
    return await pairs.transfers(peers, graph, options.image_size, options.max_pairs)


def _no_runtime(error: Exception) -> Result:
    return fail(
        "workers",
        f"Dynamo's runtime does not start: {error!s:.300}",
        "--verbose shows what Dynamo says about it",
    )


def _discovery_is_silent() -> Result:
    return fail(
        "workers",
        f"discovery did not answer within {GRAPH_LIMIT_S:g} s",
        "look into the log of etcd, or of the Kubernetes API; restart it if it hangs",
    )


# --- Output ---


def _say(text: str) -> None:
    print(f"doctor: {text}", file=sys.stderr, flush=True)


def _take_output(verbose: bool) -> Callable[[str], None]:
    """What publishes the report. From here on, stdout has nothing but that, and stderr nothing but
    our own lines: what libraries print goes to stderr if `verbose`, and nowhere otherwise, until
    the process has ended. Dynamo's runtime tells of every call, whatever DYN_LOG says.
    """
    report = os.fdopen(os.dup(1), "w")
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1)
    if not verbose:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 2)
        os.close(nowhere)
    os.dup2(2, 1)

    def publish(text: str) -> None:
        print(text, file=report, flush=True)

    return publish
