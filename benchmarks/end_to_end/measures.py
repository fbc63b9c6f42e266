# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""What is measured of a graph that is up."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from benchmarks.end_to_end.client import Client, Failed, Reply
from benchmarks.end_to_end.questions import Question, Questions
from benchmarks.end_to_end.results import Results, Setup

SMALL: Final = (224, 224)
LARGE: Final = (448, 448)
SIZES: Final = ((112, 112), (224, 112), (224, 224), (336, 224))
"""Of requests that are sent together: 16, 32, 64 and 96 tokens."""
WARM: Final = (*SIZES, LARGE)
BURST: Final = 64

ANSWER: Final = "one image, whole answer"
FIRST_TOKEN: Final = "one image, first token"
AT_ONCE: Final = f"{BURST} requests at once, wall time"
FOUR: Final = "four images in one request, first token"
NEW_SMALL: Final = f"new image of {SMALL[0]} px, first token"
AGAIN_SMALL: Final = f"the same image of {SMALL[0]} px again, first token"
NEW_LARGE: Final = f"new image of {LARGE[0]} px, first token"
AGAIN_LARGE: Final = f"the same image of {LARGE[0]} px again, first token"

# A graph that fails this many times in a row is not asked any more in that series.
MAX_FAILURES: Final = 3
WARM_UP_DEADLINE_S: Final = 180.0
SETTLED: Final = 6


@dataclass(frozen=True)
class Repeats:
    """How often each measurement is made in one turn of a graph with one number of workers."""

    requests: int
    """One at a time."""
    bursts: int
    several: int
    """Requests with four images, and images that are asked about twice."""


@dataclass(frozen=True)
class Turn:
    """One graph, ready, with a number of encode workers."""

    setup: Setup
    client: Client
    questions: Questions
    results: Results
    repeats: Repeats

    async def ask(self, measure: str, question: Question) -> Reply | None:
        """A request of a series; None, and noted, where it fails."""
        try:
            reply = await self.client.ask(question)
        except Failed as error:
            self.results.fail(self.setup, measure, str(error))
            return None
        self.results.answered(self.setup, question, reply.text)
        return reply

    def note(self, measure: str, seconds: float) -> None:
        self.results.add(self.setup, measure, seconds)


async def warm_up(turn: Turn) -> None:
    """Ask, unmeasured, until the graph answers requests of every size reliably and in bursts.

    Raises `Failed` when it does not come to that in time.
    """
    give_up_at = time.monotonic() + WARM_UP_DEADLINE_S
    in_a_row = number = 0
    while in_a_row < SETTLED * 2:
        size, stream = WARM[number % len(WARM)], number % 2 == 0
        question = turn.questions.draw(f"warm-up/{number}", (size,), stream)
        try:
            await turn.client.ask(question)
            in_a_row += 1
        except Failed as error:
            in_a_row = 0
            if time.monotonic() > give_up_at:
                raise Failed(f"does not get warm: {error}") from error
            await asyncio.sleep(0.5)
        number += 1
    burst = [turn.questions.draw(f"warm-up/burst/{i}", (s,)) for i, s in enumerate(SIZES * 2)]
    await asyncio.gather(*(turn.client.ask(q) for q in burst), return_exceptions=True)


async def one_at_a_time(turn: Turn) -> None:
    """A small picture, not streamed and streamed in turns."""
    await _in_series(turn, turn.repeats.requests, _one)


async def at_once(turn: Turn) -> None:
    """Many requests with pictures of four sizes, all sent at once."""
    await _in_series(turn, turn.repeats.bursts, _burst)


async def four_images(turn: Turn) -> None:
    """Four large pictures in one request."""
    await _in_series(turn, turn.repeats.several, _four)


async def repeated(turn: Turn) -> None:
    """A picture that nobody has seen, then the same again."""
    await _in_series(turn, turn.repeats.several, _twice)


MEASURES: Final = (one_at_a_time, at_once, four_images, repeated)


async def _in_series(turn: Turn, count: int, once: Callable[[Turn, int], Awaitable[bool]]) -> None:
    """`once` is told the number of the repeat, and says whether it got answers."""
    failures = 0
    for number in range(count):
        failures = 0 if await once(turn, number) else failures + 1
        if failures == MAX_FAILURES:
            return


async def _one(turn: Turn, number: int) -> bool:
    whole = turn.questions.draw(f"whole/{number}", (SMALL,), stream=False)
    streamed = turn.questions.draw(f"streamed/{number}", (SMALL,))
    reply = await turn.ask(ANSWER, whole)
    if reply is not None:
        turn.note(ANSWER, reply.total_s)
    first = await turn.ask(FIRST_TOKEN, streamed)
    if first is not None:
        turn.note(FIRST_TOKEN, first.first_token_s)
    return reply is not None and first is not None


async def _burst(turn: Turn, number: int) -> bool:
    questions = [
        turn.questions.draw(f"burst/{number}/{i}", (SIZES[i % len(SIZES)],), stream=False)
        for i in range(BURST)
    ]
    started = time.monotonic()
    replies = await asyncio.gather(*(turn.ask(AT_ONCE, question) for question in questions))
    took = time.monotonic() - started
    if None in replies:
        return False
    turn.note(AT_ONCE, took)
    return True


async def _four(turn: Turn, number: int) -> bool:
    reply = await turn.ask(FOUR, turn.questions.draw(f"four/{number}", (LARGE,) * 4))
    if reply is not None:
        turn.note(FOUR, reply.first_token_s)
    return reply is not None


async def _twice(turn: Turn, number: int) -> bool:
    whole = True
    for size, measures in ((SMALL, (NEW_SMALL, AGAIN_SMALL)), (LARGE, (NEW_LARGE, AGAIN_LARGE))):
        question = turn.questions.draw(f"twice/{size[0]}/{number}", (size,))
        for measure in measures:
            reply = await turn.ask(measure, question)
            if reply is not None:
                turn.note(measure, reply.first_token_s)
            whole = whole and reply is not None
    return whole
