# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""The prefill worker: grants blocks, assembles embeddings, runs the SGLang engine.

Text generation is Dynamo's own `DecodeWorkerHandler`, untouched: sampling, logprobs, guided
decoding, LoRA and cancellation are the same for a picture as for text. With decode workers it is
Dynamo's `PrefillWorkerHandler`.
"""

import asyncio
import logging
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Any, Final

from dynamo.sglang.request_handlers import DecodeWorkerHandler

from dynamo.sglang_mm_resume.config import Settings
from dynamo.sglang_mm_resume.core.errors import (
    ProtocolError,
    Reason,
    Refused,
    ResumeError,
)
from dynamo.sglang_mm_resume.core.layout import Layout
from dynamo.sglang_mm_resume.core.lengths import RecentLengths
from dynamo.sglang_mm_resume.core.messages import (
    ENCODE_CONTROL_REPLY,
    LOCAL_MEDIA,
    PREFILL_REQUEST,
    Abort,
    Close,
    Done,
    Grant,
    Granted,
    Hello,
    Media,
    Message,
    NoBlocks,
    Ping,
    Received,
    ReceiverName,
    Refusal,
    Reserve,
    Resume,
    Welcome,
    dump,
    parse,
    version_of,
)
from dynamo.sglang_mm_resume.transport.assembler import Assembler
from dynamo.sglang_mm_resume.transport.memory import PoolMemory
from dynamo.sglang_mm_resume.transport.nixl_agent import NixlAgent
from dynamo.sglang_mm_resume.transport.rpc import (
    Client,
    PeerUnreachable,
    ProbeTotals,
    ask,
    ping,
)
from dynamo.sglang_mm_resume.workers.by_reference import ByReference
from dynamo.sglang_mm_resume.workers.lifecycle import (
    Admission,
    RequestContext,
    RequestStopped,
    until_stopped,
)
from dynamo.sglang_mm_resume.workers.media import MediaLoader
from dynamo.sglang_mm_resume.workers.request import LOCAL_MEDIA_KEY, taken, transfers_of
from dynamo.sglang_mm_resume.workers.sglang_engine import (
    Embedding,
    EmbeddingInput,
    KvSource,
    Offer,
)

logger = logging.getLogger(__name__)

#: NIXL agents whose notices are heard. A deployment has fewer encode workers, restarts included.
REMEMBERED_WRITERS: Final = 4096


class Writers:
    """Asks encode workers to close transfers, and knows when one is dead (R6).

    A writer is dead once it has failed `heartbeat_max_failures` probes in a row. There is one probe
    an interval, however many of its transfers are being closed meanwhile.
    """

    def __init__(self, client: Client, settings: Settings) -> None:
        self.probes = ProbeTotals()
        self._client = client
        self._settings = settings
        self._failed_probes: Counter[int] = Counter()  # of each writer, since its last answer

    async def close_transfer(self, writer: int, transfer_id: str) -> bool:
        """True once the writer cannot touch the transfer's blocks any more."""
        close = Close(transfer_id=transfer_id)
        timeout_s = self._settings.heartbeat_interval_s
        try:
            await ask(self._client, writer, close, ENCODE_CONTROL_REPLY, timeout_s)
        except PeerUnreachable as error:
            logger.warning("encode worker %s does not close %s: %s", writer, transfer_id, error)
            return await self._is_dead_and_drained(writer)
        except ResumeError as error:
            logger.error("encode worker %s refuses to close %s: %s", writer, transfer_id, error)
            return False
        del self._failed_probes[writer]
        return True

    async def watch(self, assembler: Assembler) -> None:
        """Probe every writer that may still write, for ever; give up transfers of a dead one."""
        while True:
            await asyncio.sleep(self._settings.heartbeat_interval_s)
            writers = assembler.receiver.writers
            self._forget_all_but(writers)
            probes = (self._probe(writer, assembler) for writer in writers)
            for outcome in await asyncio.gather(*probes, return_exceptions=True):
                if isinstance(outcome, Exception):
                    logger.error("a probe failed", exc_info=outcome)

    async def _probe(self, writer: int, assembler: Assembler) -> None:
        timeout_s = self._settings.heartbeat_interval_s
        try:
            await ping(self._client, writer, timeout_s, self.probes)
        except ResumeError as error:
            self._failed_probes[writer] += 1
            logger.warning("encode worker %s failed a probe: %s", writer, error)
        else:
            del self._failed_probes[writer]
        if self._is_silent(writer):
            for transfer_id, its_writer in assembler.receiver.writing.items():
                if its_writer == writer:
                    assembler.drop(transfer_id, why=f"encode worker {writer} is dead")

    def _is_silent(self, writer: int) -> bool:
        return self._failed_probes[writer] >= self._settings.heartbeat_max_failures

    def _forget_all_but(self, needed: set[int]) -> None:
        """Failures count while a writer may write; a later transfer begins without a past."""
        for writer in set(self._failed_probes) - needed:
            del self._failed_probes[writer]

    async def _is_dead_and_drained(self, writer: int) -> bool:
        """Dead: it fails its probes and its lease is gone. Bytes in sockets then get their time."""
        if writer in self._client.instance_ids() or not self._is_silent(writer):
            return False
        await asyncio.sleep(self._settings.drain_s)
        return True


class TransferHandler:
    """Serves `mm_transfer`: the receiving end of the handshake."""

    def __init__(
        self,
        layout: Layout,
        memory: PoolMemory,
        agent: NixlAgent,
        assembler: Assembler,
        admission: Admission,
        instance_id: int,
        max_prompt_tokens: int,
    ) -> None:
        self.refusals: Counter[str] = Counter()
        self._layout = layout
        self._memory = memory
        self._agent = agent
        self._assembler = assembler
        self._name = ReceiverName(instance_id=instance_id, agent=agent.name)
        self._max_prompt_tokens = max_prompt_tokens
        self._writers: OrderedDict[str, None] = OrderedDict()  # NIXL agents that have said hello
        self._admission = admission

    async def mm_transfer(
        self, payload: Any, context: RequestContext
    ) -> AsyncGenerator[dict[str, Any], None]:
        """Answer one control message with one message."""
        version = version_of(payload)
        try:
            message = parse(PREFILL_REQUEST, payload)
            yield dump(await until_stopped(context, self._answer(message)), version)
        except ResumeError as error:
            refusal = Refusal.of(error)
            self.refusals[refusal.reason] += 1
            logger.info("refused (%s): %s", refusal.reason, refusal.message)
            yield dump(refusal, version)
        except RequestStopped:
            return

    def on_notice(self, peer: str, payload: bytes) -> None:
        """A notification from a NIXL agent; a stranger's changes nothing (R10)."""
        if peer in self._writers:
            self._assembler.on_notice(peer, payload)
            return
        self._assembler.totals.stranger_notices += 1
        logger.warning("notice from %s ignored: it never said hello", peer)

    async def _answer(self, message: Hello | Reserve | Resume | Abort | Ping) -> Message:
        match message:
            case Hello():
                return self._welcome(message)
            case Reserve() | Resume():
                return await self._grant(message)
            case Abort():
                self._assembler.abort(message.transfer_id, message.writer_closed)
                return Done()
            case Ping():
                return Done()

    def _welcome(self, hello: Hello) -> Welcome:
        ours = self._layout.spoken_in(hello.v)
        ours.require_same(hello.layout, f"encode worker {hello.instance_id}")
        logger.info("met encode worker %s: layout %s", hello.instance_id, self._layout.fingerprint)
        self._writers[hello.agent] = None
        if len(self._writers) > REMEMBERED_WRITERS:
            self._writers.popitem(last=False)
        return Welcome(
            layout=self._layout,
            agent=self._agent.name,
            metadata=self._agent.metadata,
            base_address=self._memory.tensor.data_ptr(),
            num_blocks=self._memory.num_blocks,
            memory=self._agent.memory_kind,
            device_id=self._agent.device_id,
        )

    async def _grant(self, message: Reserve | Resume) -> Granted | NoBlocks:
        if isinstance(message, Reserve):
            self._admission.require_open()
            grant = await self._assembler.reserve(message)
        elif message.wait:
            grant = await self._assembler.resume(
                message.transfer_id, message.sent_tokens, message.total_tokens
            )
        else:
            tried = self._assembler.try_grant(message.transfer_id, message.total_tokens)
            return NoBlocks() if tried is None else self._granted(tried, waited_s=0.0)
        return self._granted(grant, self._assembler.receiver.waited_s(message.transfer_id))

    def _granted(self, grant: Grant, waited_s: float) -> Granted:
        return Granted(
            grant=grant,
            receiver=self._name,
            max_prompt_tokens=self._max_prompt_tokens,
            waited_s=waited_s,
        )


class _FromTransfers(ByReference):
    """Waits for the transfers that a request names, or loads its pictures where it has none."""

    def __init__(
        self,
        *args: Any,
        assembler: Assembler,
        media: MediaLoader,
        max_local: int,
        has_tower: bool,
        **kwargs: Any,
    ) -> None:
        """`max_local`: pictures loaded here at the same time, for the engine's own tower."""
        super().__init__(*args, **kwargs)
        self._assembler = assembler
        self._media = media
        self._max_local = max_local
        self._has_tower = has_tower
        self._local = 0

    @asynccontextmanager
    async def offers(
        self, request: dict[str, Any], context: RequestContext
    ) -> AsyncIterator[Sequence[Offer]]:
        transfers = transfers_of(request)
        local: list[Media] = []
        try:
            local = taken(LOCAL_MEDIA, request, LOCAL_MEDIA_KEY)
            self._local += len(local)
            if not transfers:  # else they are here already, and nowhere else
                self._admission.require_open()
            work = self._collect(transfers) if transfers else self._load(local)
            yield await until_stopped(context, work)
        finally:
            self._local -= len(local)
            for transfer in transfers:
                self._assembler.drop(transfer.transfer_id)

    async def _collect(self, transfers: list[Received]) -> Sequence[Offer]:
        return [await self._embedding(transfer) for transfer in transfers]

    async def _embedding(self, received: Received) -> Embedding:
        rows = await self._assembler.take(received.transfer_id)
        if len(rows) != received.total_tokens:
            raise ProtocolError(
                f"{received.transfer_id} has {len(rows)} rows, "
                f"its request expects {received.total_tokens}"
            )
        return Embedding.of(received, rows)

    async def _load(self, local: list[Media]) -> Sequence[Offer]:
        """Pictures for the engine's own tower. One after the other: this is not the rule."""
        if local and not self._has_tower:
            raise Refused(
                Reason.NO_VISION,
                "this engine has no vision tower (--no-local-vision): send embeddings, or start "
                "the prefill worker without that flag",
            )
        if self._local > self._max_local:
            raise Refused(
                Reason.OVERLOADED,
                f"{self._max_local} media items are being encoded here already "
                "(--mm-resume-max-encodes): try again later",
            )
        return [await self._media.load(media) for media in local]


class PrefillHandler(_FromTransfers, DecodeWorkerHandler):
    """Dynamo's handler, fed with embeddings instead of URLs. Its answer is the request's."""


class KvSourceHandler(_FromTransfers, KvSource):
    """The same for an engine that hands its KV to a decode worker, which answers."""

    async def generate(
        self, request: dict[str, Any], context: Any
    ) -> AsyncGenerator[dict[str, Any], None]:
        """The KV's name first; then nothing until a decode worker has fetched it."""
        if not request.get("bootstrap_info"):  # nobody would fetch it
            raise RuntimeError(
                "with --disaggregation-mode prefill this worker answers nothing itself: start the "
                "processor with --decode-workers"
            )
        async for chunk in super().generate(request, context):
            yield chunk


async def drain(admission: Admission, assembler: Assembler, grace_s: float) -> None:
    """Accept nothing new; let what is on its way arrive, and its answers end. Bounded in time."""
    admission.leave()
    try:
        async with asyncio.timeout(grace_s):
            await assembler.drained()
            await admission.idle()
    except TimeoutError:
        logger.warning("%d requests did not finish in time", admission.accepted)


def _lengths(lengths: RecentLengths) -> dict[str, int | None]:
    """Tokens of recent embeddings; `p75` once they are enough to say so."""
    return {"count": len(lengths), "p75": lengths.usual, "max": lengths.longest}


def prefill_status(
    settings: Settings,
    transfers: TransferHandler,
    assembler: Assembler,
    embeddings: EmbeddingInput,
    writers: Writers,
) -> dict[str, Any]:
    """What operators and tests look at; every number is current."""
    receiver = assembler.receiver
    return {
        "role": "prefill",
        "pool": asdict(receiver.pool.stats()),
        "transfers": {k: v.value for k, v in receiver.live.items()},
        "progress": {k: asdict(v) for k, v in receiver.progress(time.monotonic()).items()},
        "local_vision": settings.local_vision,
        "default_blocks": receiver.pool.default_blocks,
        "waiting": receiver.num_waiting,
        "peak_transfers": receiver.peak_transfers,
        "lengths": _lengths(receiver.lengths),
        "assembled_tokens": receiver.assembled_tokens,
        "embeddings_offered": len(embeddings),
        "content_names": embeddings.names_status,
        "totals": {
            **asdict(assembler.totals),
            "reasons": dict(assembler.totals.reasons),
            "peer_probes": {"encode": asdict(writers.probes)},
        },
        "oddities": {k.value: v for k, v in receiver.oddities.items()},
        "refusals": dict(transfers.refusals),
        "tasks": assembler.num_tasks,
        "limits": settings.limits,
    }
