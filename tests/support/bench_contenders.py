# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Contenders for the tests of the benchmark: embeddings cross as a message, more or less well."""

import os
import time
from typing import Any

import torch

from benchmarks.sides import Receiver, Writer, wait_until
from benchmarks.workload import HandOff, Order


class MessageWriter(Writer):
    async def hand_off(self, rows: torch.Tensor, number: int, order: Order) -> HandOff:
        key = f"{self.index}-{number}"
        await wait_until(order.at)
        started = time.monotonic()
        words = rows.view(torch.int16).numpy()
        ended: float = await self.peer.ask("take", (key, words))
        content = {"content": [float(word) for word in words[0]]}
        return HandOff(key, ended, {"message": ended - started}, content)


class MessageReceiver(Receiver):
    async def answer(self, op: str, body: Any) -> float:
        key, words = body
        self.rows[key] = torch.from_numpy(words.copy()).view(torch.bfloat16)
        return time.monotonic()


class CorruptingReceiver(MessageReceiver):
    """One bit of one row is wrong."""

    async def answer(self, op: str, body: Any) -> float:
        ended = await super().answer(op, body)
        self.rows[body[0]].view(torch.int16)[-1, -1] ^= 1
        return ended


class DyingReceiver(MessageReceiver):
    async def answer(self, op: str, body: Any) -> float:
        os._exit(3)
