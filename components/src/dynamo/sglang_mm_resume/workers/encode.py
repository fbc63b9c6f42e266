# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""The encode worker: loads media, runs the vision tower, writes embeddings into granted blocks."""

import asyncio
import logging
from collections import Counter, defaultdict
from collections.abc import AsyncGenerator
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

from dynamo.sglang_mm_resume import tracing
from dynamo.sglang_mm_resume.config import Settings
from dynamo.sglang_mm_resume.core.budget import PromptBudget
from dynamo.sglang_mm_resume.core.errors import (
    ProtocolError,
    Reason,
    Refused,
    ResumeError,
    TransferFailed,
)
from dynamo.sglang_mm_resume.core.histogram import SECONDS, Histogram
from dynamo.sglang_mm_resume.core.layout import Layout
from dynamo.sglang_mm_resume.core.messages import (
    ENCODE,
    ENCODE_CONTROL,
    PREFILL_REPLY,
    Close,
    Done,
    Encode,
    Forward,
    Hello,
    Message,
    Ping,
    ReceiverName,
    Refusal,
    Welcome,
    dump,
    parse,
    version_of,
)
from dynamo.sglang_mm_resume.transport.nixl_agent import NixlAgent
from dynamo.sglang_mm_resume.transport.rpc import Client, ask
from dynamo.sglang_mm_resume.transport.tasks import Background
from dynamo.sglang_mm_resume.transport.writer import Outgoing, Writer
from dynamo.sglang_mm_resume.workers.encodings import Encodings
from dynamo.sglang_mm_resume.workers.lifecycle import (
    Admission,
    RequestContext,
    RequestStopped,
    until_stopped,
)
from dynamo.sglang_mm_resume.workers.media import MediaLoader, blaming
from dynamo.sglang_mm_resume.workers.sglang_encoder import VisionEncoder

logger = logging.getLogger(__name__)


class Receivers:
    """The prefill workers this worker has met: layouts compared, block lists prepared (R10)."""

    def __init__(
        self, client: Client, agent: NixlAgent, layout: Layout, instance_id: int, timeout_s: float
    ) -> None:
        self._client = client
        self._agent = agent
        self._layout = layout
        self._instance_id = instance_id
        self._timeout_s = timeout_s
        self._met: dict[ReceiverName, Welcome] = {}
        self._meeting: defaultdict[ReceiverName, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def meet(self, name: ReceiverName) -> Welcome:
        """Say hello once per NIXL agent. Raises `Refused` naming what differs."""
        async with self._meeting[name]:
            welcome = self._met.get(name)
            if welcome is None or not self._agent.is_connected(name.agent):
                await self._forget_departed()
                try:
                    welcome = await self._hello(name)
                except BaseException:
                    self._meeting.pop(name, None)  # it may be no name of anybody
                    raise
                self._met[name] = welcome
            return welcome

    async def _forget_departed(self) -> None:
        """Prefill workers come and go; what is kept for each must not add up."""
        alive = set(self._client.instance_ids())
        for name in [name for name in self._met if name.instance_id not in alive]:
            logger.info("prefill worker %s has left", name.instance_id)
            del self._met[name]
            self._meeting.pop(name, None)
            await self._agent.disconnect(name.agent)

    async def _hello(self, name: ReceiverName) -> Welcome:
        hello = Hello(layout=self._layout, instance_id=self._instance_id, agent=self._agent.name)
        answer = await ask(self._client, name.instance_id, hello, PREFILL_REPLY, self._timeout_s)
        if not isinstance(answer, Welcome) or answer.agent != name.agent:
            raise ProtocolError(f"prefill worker {name.instance_id} answered hello with {answer!r}")
        ours = self._layout.spoken_in(answer.v)
        ours.require_same(answer.layout, f"prefill worker {name.instance_id}")
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._agent.connect(answer)
        except TimeoutError:
            raise TransferFailed(f"prefill worker {name.instance_id} cannot be connected") from None
        logger.info("met prefill worker %s: layout %s", name.instance_id, answer.layout.fingerprint)
        return answer


class EncodeHandler:
    """Serves `generate` (one media item a call) and `mm_transfer` (control messages)."""

    def __init__(
        self,
        settings: Settings,
        encoder: VisionEncoder,
        media: MediaLoader,
        writer: Writer,
        receivers: Receivers,
    ) -> None:
        self.refusals: Counter[str] = Counter()
        self.load_seconds = Histogram(SECONDS)
        self._settings = settings
        self._media = media
        self._encodings = Encodings(encoder, media, writer)
        self._writer = writer
        self._receivers = receivers
        self._background = Background()
        self._admission = Admission()

    async def generate(
        self, payload: Any, context: RequestContext
    ) -> AsyncGenerator[dict[str, Any], None]:
        """Answer one `Encode` with `Sized`, a `Sent` per grant, or one `Refusal`."""
        version = version_of(payload)
        try:
            message = parse(ENCODE, payload)
            async for event in self._serve(message, context):
                yield dump(event, version)
        except ResumeError as error:
            yield dump(self._refusal(error), version)
        except RequestStopped:
            return
        except Exception as error:  # SGLang's own: not the client's fault, whatever its type
            logger.exception("encoding failed")
            self.refusals[Reason.INTERNAL] += 1
            refusal = Refusal(reason=Reason.INTERNAL, message=f"encoding failed: {error!r:.300}")
            yield dump(refusal, version)

    async def mm_transfer(
        self, payload: Any, context: RequestContext
    ) -> AsyncGenerator[dict[str, Any], None]:
        """Answer one control message."""
        version = version_of(payload)
        try:
            yield dump(await self._control(parse(ENCODE_CONTROL, payload)), version)
        except ResumeError as error:
            yield dump(self._refusal(error), version)

    async def drain(self) -> None:
        """Accept no more, and let what is under way finish; give up what does not in time.

        Our endpoints must still be up: grants for these transfers come through them.
        """
        self._admission.leave()
        try:
            async with asyncio.timeout(self._settings.shutdown_grace_s):
                await self._admission.idle()
        except TimeoutError:
            logger.warning("%d media items did not finish in time", self._admission.accepted)
            await self._writer.close_all()

    async def close(self) -> None:
        await self._writer.close_all()
        await self._background.finish()

    def status(self) -> dict[str, Any]:
        """What operators and tests look at; every number is current."""
        batches = self._encodings.encoder.batches
        return {
            "role": "encode",
            "content_identity": self._media.identity,
            "pool": self._pool_status(),
            "transfers": {k: v.value for k, v in self._writer.live.items()},
            "progress": {k: asdict(v) for k, v in self._writer.progress.items()},
            "encodes_waiting": batches.num_waiting,
            "writes_in_flight": self._writer.num_in_flight,
            "totals": {
                **asdict(self._writer.totals),
                **asdict(self._writer.cache.totals),
                **asdict(self._encodings.totals),
                "load_seconds": asdict(self.load_seconds),
                "encode_seconds": asdict(batches.seconds),
                "encode_batch_items": asdict(batches.sizes),
            },
            "refusals": dict(self.refusals),
            "tasks": len(self._background),
            "limits": self._settings.limits,
        }

    def _pool_status(self) -> dict[str, int]:
        """Blocks by state. `cached`: they hold embeddings, and are free for whoever needs them."""
        stats = self._writer.staging.pool.stats()
        cached = self._writer.cache.num_idle_blocks
        return {**asdict(stats), "held": stats.held - cached, "cached": cached}

    def _refusal(self, error: ResumeError) -> Refusal:
        refusal = Refusal.of(error)
        self.refusals[refusal.reason] += 1
        logger.warning("refused (%s): %s", refusal.reason, refusal.message)
        return refusal

    async def _serve(
        self, message: Encode, context: RequestContext
    ) -> AsyncGenerator[Message, None]:
        self._admission.require_open()
        if self._admission.accepted >= self._settings.max_encodes:
            raise Refused(
                Reason.OVERLOADED,
                f"{self._settings.max_encodes} media items are being encoded already "
                "(--mm-resume-max-encodes): try again later",
            )
        with self._admission.work():
            receiver = await until_stopped(context, self._receivers.meet(message.receiver))
            outgoing = self._writer.open(message.grant, receiver.agent, receiver.num_blocks)
            stop = self._background.start(self._close_when_stopped(message.transfer_id, context))
            try:
                async for event in self._encode(message, outgoing):
                    yield event
            finally:
                stop.cancel()
                # A task of its own: writes in flight must end even if we are being cancelled.
                await asyncio.shield(
                    self._background.start(self._writer.close(message.transfer_id))
                )

    async def _encode(self, message: Encode, outgoing: Outgoing) -> AsyncGenerator[Message, None]:
        with blaming(message.media), ExitStack() as uses:
            with tracing.span("load", self.load_seconds):
                content = await outgoing.unless_closed(self._media.fetch(message.media))
                encoding = uses.enter_context(self._encodings.of(content))
                del content  # what is held is bounded in sum
                sized = await outgoing.unless_closed(encoding.sized())
            # Before the tower: it cannot be interrupted, and others wait for it.
            budget = PromptBudget(message.prompt_tokens, message.max_prompt_tokens)
            budget.add(sized.total_tokens)
            yield sized
            with tracing.span("encode", tokens=sized.total_tokens):
                rows = await outgoing.unless_closed(encoding.rows())
            async for sent in outgoing.send(rows):
                yield sent

    async def _close_when_stopped(self, transfer_id: str, context: RequestContext) -> None:
        await context.async_killed_or_stopped()
        await self._writer.close(transfer_id)

    async def _control(self, message: Forward | Close | Ping) -> Message:
        if isinstance(message, Forward):
            self._writer.forward(message.grant)
        elif isinstance(message, Close):
            await self._writer.close(message.transfer_id)
        return Done()
