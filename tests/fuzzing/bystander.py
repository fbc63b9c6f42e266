# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""A client who asks for nothing special all the time, and whose answers must stay as they are."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import httpx

from examples.local_stack import LocalStack
from tests.support.client import ask, data_url
from tests.support.deployments import MODEL_NAME
from tests.support.exact import MIN_MARGIN
from tests.support.oracle import Oracle
from tests.support.pictures import patchwork

QUESTION = "What is this?"
MAX_TOKENS = 8
STALL_S = 5.0
"""Longer than this, no answer may take."""
TIMEOUT_S = 60.0
BETWEEN_S = 0.1


@dataclass(frozen=True)
class Question:
    """With or without an image, and the one right answer."""

    images: tuple[str, ...]
    token_ids: tuple[int, ...]


def questions_for(oracle: Oracle) -> list[Question]:
    """One with an image, which takes the way of all media, and one without."""
    questions = []
    for images in ([patchwork(700, 4, 4)], []):
        expected = oracle.generate(images, QUESTION, MAX_TOKENS)
        assert expected.margin > MIN_MARGIN, "nearly a tie: take another image"
        urls = tuple(data_url(image) for image in images)
        questions.append(Question(urls, tuple(expected.token_ids)))
    return questions


class Bystander:
    """Asks again and again, in a thread of its own, from `start` to `stop`."""

    def __init__(
        self, stack: LocalStack, questions: Sequence[Question], on_problem: Callable[[str], None]
    ) -> None:
        self.answers = 0
        self.slowest_s = 0.0
        self._stack = stack
        self._questions = questions
        self._on_problem = on_problem
        self._over = threading.Event()
        self._asked_at: float | None = None
        self._thread = threading.Thread(target=self._run, name="bystander")

    def start(self) -> None:
        """Begin to ask."""
        self._thread.start()

    def stop(self) -> None:
        """Wait for the last answer."""
        self._over.set()
        self._thread.join()

    @property
    def waits_s(self) -> float:
        """For how long it has been waiting for the answer to come."""
        asked_at = self._asked_at
        return 0.0 if asked_at is None else time.monotonic() - asked_at

    def complaint(self, question: Question, timeout_s: float = TIMEOUT_S) -> str | None:
        """Ask once; what is wrong with the answer, if anything is."""
        self._asked_at = time.monotonic()
        try:
            urls, url = question.images, self._stack.base_url
            answer = ask(url, MODEL_NAME, urls, QUESTION, MAX_TOKENS, timeout_s=timeout_s)
        except httpx.HTTPError as error:
            return f"the bystander got no answer in {self.waits_s:.1f} s: {error!r}"
        finally:
            took_s = self.waits_s
            self._asked_at = None
        self.answers += 1
        self.slowest_s = max(self.slowest_s, took_s)
        if not answer.ok:
            return f"the bystander was refused: {answer.status} {answer.raw}"[:500]
        if tuple(answer.token_ids) != question.token_ids:
            return f"the bystander got {answer.token_ids} instead of {question.token_ids}"
        if took_s > STALL_S:
            return f"the bystander waited for {took_s:.1f} s"
        return None

    def serves(self, timeout_s: float = TIMEOUT_S) -> bool:
        """Whether each question is answered as ever."""
        return all(self.complaint(question, timeout_s) is None for question in self._questions)

    def _run(self) -> None:
        while not self._over.wait(BETWEEN_S):
            for question in self._questions:
                complaint = self.complaint(question)
                if complaint is not None:
                    self._on_problem(complaint)
