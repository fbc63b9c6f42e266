# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Which encode worker had a picture last: it may still have the embedding."""

from collections import OrderedDict
from typing import Final

from dynamo.sglang_mm_resume.core.messages import Media

#: Pictures that are remembered; a hundred bytes each.
REMEMBERED: Final = 2**14


class Affinity:
    """A hint, by URL: what is behind a URL may change, and a worker may need its blocks."""

    def __init__(self) -> None:
        self._workers: OrderedDict[int, int] = OrderedDict()

    def worker_of(self, media: Media) -> int | None:
        return self._workers.get(_name(media))

    def remember(self, media: Media, worker: int) -> None:
        """Also before it has encoded it: equal pictures that come meanwhile share the work."""
        name = _name(media)
        self._workers[name] = worker
        self._workers.move_to_end(name)
        if len(self._workers) > REMEMBERED:
            self._workers.popitem(last=False)


def _name(media: Media) -> int:
    return hash((media.modality, media.url))
