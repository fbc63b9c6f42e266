# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""All that is used of SGLang's engine beyond Dynamo's own handlers, private names included.

Finished embeddings enter through the seam that SGLang made for a separate encoder: its processor's
`get_validated_mm_data` expands the placeholders by the model's own rule, computes M-RoPE and
checks rows against placeholders (R12) in this process, before the scheduler sees anything.
A request names its embeddings by *references* in `image_data` and `video_data`, where otherwise
URLs stand, so that Dynamo's handlers pass them on unchanged. The names are guarded by
tests/workers/test_upstream_names.py.
"""

import asyncio
import copy
import math
import os
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

import torch
from dynamo.llm import lora_name_to_id
from dynamo.sglang._compat import get_sglang_model_config
from dynamo.sglang.request_handlers import PrefillWorkerHandler
from dynamo.sglang.request_handlers.llm.decode_handler import _raise_if_sglang_error
from dynamo.sglang.request_handlers.multimodal.encode_worker_handler import (
    _install_load_video_passthrough,
)
from sglang.srt.disaggregation.utils import FAKE_BOOTSTRAP_HOST
from sglang.srt.environ import envs
from sglang.srt.managers.schedule_batch import Modality

from dynamo.sglang_mm_resume import sglang_no_tower
from dynamo.sglang_mm_resume.core.errors import ProtocolError, TransferFailed
from dynamo.sglang_mm_resume.core.messages import SHORT_HASH_DIGITS, Received
from dynamo.sglang_mm_resume.core.messages import Modality as ModalityName
from dynamo.sglang_mm_resume.core.names import ContentNames
from dynamo.sglang_mm_resume.workers.decoding import Loaded, Video
from dynamo.sglang_mm_resume.workers.request import ROOMS_KEY, one_choice

EXTERNAL_MODELS: Final = "SGLANG_EXTERNAL_MODEL_PACKAGE"
SCHEME: Final = "mm-resume:"

#: Patches that one row stands for at most; four in Qwen-VL's models.
MAX_PATCHES_PER_TOKEN: Final = 64


@dataclass(frozen=True, slots=True)
class Embedding:
    """One item's embedding, `(total_tokens, width)`, and its patch grid `(t, h, w)`.

    `content` tells the item from every item with another content. It begins with 16 hex digits of a
    content hash, from which the engine's name for the item is derived where that is free. The last
    two are of a video, and as in `core.messages.Shape`.
    """

    rows: torch.Tensor
    grid: tuple[int, ...]
    content: str
    modality: ModalityName = "image"
    timestamps: tuple[float, ...] = ()
    second_per_grid: float | None = None

    @classmethod
    def of(cls, received: Received, rows: torch.Tensor) -> "Embedding":
        """What a request says of an item, with the rows that came for it.

        An item whose whole hash is not known, as a worker of version 2 has named it, shares KV with
        nobody: its transfer names it.
        """
        content = received.content_hash
        if len(content) == SHORT_HASH_DIGITS:
            content = f"{content} of transfer {received.transfer_id}"
        return cls(
            rows,
            received.grid,
            content,
            received.modality,
            received.timestamps,
            received.second_per_grid,
        )

    @property
    def pieces(self) -> list[tuple[torch.Tensor, "Piece"]]:
        """Rows and name of each run of placeholders: a video whose steps the prompt tells apart by
        time stamps has one per step.
        """
        content, wanted = f"{self.modality} {self.content}", _wanted(self.content)
        if not self.timestamps:
            return [(self.rows, Piece(content, wanted))]
        steps = self.rows.tensor_split(self.grid[0])
        # Copies: to another process, a part of a tensor travels with the whole of it.
        return [
            (rows.clone(), Piece(f"{content} step {step}", wanted ^ step))
            for step, rows in enumerate(steps)
        ]


@dataclass(frozen=True, slots=True)
class Piece:
    """One of SGLang's items, as `ContentNames.name_of` wants to know it."""

    content: str
    wanted: int


def _wanted(content: str) -> int:
    """What others derive the name of this content from."""
    return int(content[:SHORT_HASH_DIGITS], 16)


def rows_unseen(total_tokens: int) -> torch.Tensor:
    """Rows for an engine that takes KV from elsewhere, and needs only their number."""
    return torch.empty(1, 1).expand(total_tokens, 1)


#: What stands for an item: its embedding, or itself where no encode worker is at hand.
Offer = Embedding | Loaded


class EmbeddingInput:
    """Teaches one engine to take embeddings by reference, and names what it gets.

    The names must be of one engine, as its KV is: what shares KV with others is refused at the
    start (`require_kv_of_its_own`).
    """

    def __init__(self, engine: Any) -> None:
        self.names = ContentNames()
        self._processor = engine.tokenizer_manager.mm_processor
        self._original = self._processor.process_mm_data_async
        self._offered: dict[str, Offer] = {}
        self._processor.process_mm_data_async = self._process
        _install_load_video_passthrough()  # of videos that are open already

    def __len__(self) -> int:
        return len(self._offered)

    @property
    def names_status(self) -> dict[str, int]:
        """Contents that are remembered, and those that did not get the name that they wanted."""
        return {"remembered": len(self.names), "moved": self.names.num_moved}

    def offer(self, offers: Sequence[Offer]) -> list[str]:
        """References, one per item, valid until `withdraw`."""
        references = [f"{SCHEME}{_modality_of(offer)}:{uuid.uuid4().hex}" for offer in offers]
        self._offered.update(zip(references, offers, strict=True))
        return references

    def withdraw(self, references: Iterable[str]) -> None:
        for reference in references:
            self._offered.pop(reference, None)

    async def _process(self, *args: Any, **kwargs: Any) -> Any:
        """SGLang asks for the multimodal data of one request (more than once if n > 1)."""
        request = kwargs.get("request_obj")
        if request is not None:
            request.mm_hashes = None  # SGLang would name the items by them, whatever they are
        given = (kwargs.get("image_data") or [], getattr(request, "video_data", None) or [])
        if not any(_is_reference(item) for items in given for item in items):
            return self._named(await self._original(*args, **kwargs), {})
        try:
            offers = [self._offered[item] for items in given for item in items]
        except (KeyError, TypeError):
            raise ProtocolError("a request names embeddings that are not here") from None
        embeddings = [offer for offer in offers if isinstance(offer, Embedding)]
        if embeddings:
            return self._build(kwargs["input_text"], embeddings)
        own_tower = [offer for offer in offers if isinstance(offer, Loaded)]
        images = [offer for offer in own_tower if not isinstance(offer.media, Video)]
        videos = [offer for offer in own_tower if isinstance(offer.media, Video)]
        # Pictures and videos for the engine's own tower.
        loaded = copy.copy(request)
        if videos and loaded is not None:
            loaded.video_data = [video.media for video in videos]
        kwargs |= {"image_data": [i.media for i in images] or None, "request_obj": loaded}
        output = await self._original(*args, **kwargs)
        return self._named(output, {Modality.IMAGE: images, Modality.VIDEO: videos})

    def _build(self, prompt_ids: Any, embeddings: Sequence[Embedding]) -> Any:
        for embedding in embeddings:
            _require_plausible(embedding)  # SGLang spells out every token of a grid
        images = [e for e in embeddings if e.modality == "image"]
        videos = [e for e in embeddings if e.modality == "video"]
        try:
            output = self._processor.get_validated_mm_data(
                prompt_ids,
                {
                    modality: _stand_in(own)
                    for modality, own in ((Modality.IMAGE, images), (Modality.VIDEO, videos))
                    if own
                },
                img_grid_thw=_grids(images),
                video_grid_thw=_grids(videos),
                **_times(videos),
            )
        except (RuntimeError, IndexError, ValueError, TypeError) as error:
            raise ProtocolError(f"embeddings do not fit their prompt: {error}") from error
        self._fill(_items_of(output, Modality.IMAGE), images)
        self._fill(_items_of(output, Modality.VIDEO), videos)
        output.padded_input_ids = None  # might have other names; the scheduler puts ours in
        return output

    def _fill(self, items: Sequence[Any], embeddings: Sequence[Embedding]) -> None:
        """Give SGLang's items their rows and names. Raises `ProtocolError` where they differ."""
        pieces = [piece for embedding in embeddings for piece in embedding.pieces]
        if len(items) != len(pieces):
            raise ProtocolError(
                f"the prompt has places for {len(items)} embeddings, not {len(pieces)}"
            )
        for item, (rows, piece) in zip(items, pieces, strict=True):
            if len(item.precomputed_embeddings) != len(rows):
                raise ProtocolError(
                    f"an item has {len(rows)} embedding rows, "
                    f"its place in the prompt {len(item.precomputed_embeddings)}"
                )
            item.precomputed_embeddings = rows
            self._name(item, piece)

    def _named(self, output: Any, loaded: Mapping[Modality, Sequence[Loaded]]) -> Any:
        """What SGLang has made of media, with our names: its own are 30 bits of a hash.

        What was not `loaded` here shares KV with nobody, as nobody knows what it is.
        """
        items = getattr(output, "mm_items", None)
        if not items:
            return output
        for modality, own in loaded.items():
            known = _items_of(output, modality)
            for item, piece in zip(known, _pieces_of(own, len(known)), strict=True):
                self._name(item, piece)
        for item in items:
            if item.modality not in loaded:
                unknown = uuid.uuid4()
                self._name(item, Piece(f"unknown {unknown.hex}", unknown.int))
        output.padded_input_ids = None  # has SGLang's names; the scheduler puts ours in
        return output

    def _name(self, item: Any, piece: Piece) -> None:
        item.set_hash(self.names.name_of(piece.content, piece.wanted))


def _items_of(output: Any, modality: Modality) -> list[Any]:
    return [item for item in output.mm_items if item.is_modality(modality)]


def _pieces_of(loaded: Sequence[Loaded], num_items: int) -> list[Piece]:
    """The names of the items that the engine's own tower takes: one for each that was loaded.

    Where SGLang has cut them otherwise, all that was loaded is the content of each item.
    """
    contents = [own.content_hash for own in loaded]
    if num_items != len(contents):
        together = " ".join(contents)
        contents = [f"{together} item {i} of {num_items}" for i in range(num_items)]
    return [Piece(f"own tower {content}", _wanted(content)) for content in contents]


def _is_reference(item: Any) -> bool:
    return isinstance(item, str) and item.startswith(SCHEME)


def _modality_of(offer: Offer) -> ModalityName:
    if isinstance(offer, Embedding):
        return offer.modality
    return "video" if isinstance(offer.media, Video) else "image"


def modality_of_reference(reference: str) -> str:
    """Whether it belongs among a request's images or its videos."""
    return reference.removeprefix(SCHEME).partition(":")[0]


def _stand_in(embeddings: Sequence[Embedding]) -> torch.Tensor:
    """SGLang wants all rows of a modality in one tensor and hands slices of it to the items.

    This has that shape and no memory, which saves the copy; each item then gets its own rows.
    """
    first = embeddings[0].rows
    return first.new_empty(1, 1).expand(sum(len(e.rows) for e in embeddings), first.shape[1])


def _grids(embeddings: Sequence[Embedding]) -> torch.Tensor | None:
    return torch.tensor([e.grid for e in embeddings]) if embeddings else None


def _times(videos: Sequence[Embedding]) -> dict[str, Any]:
    """What the model wants to know of each video beside its grid."""
    times: dict[str, Any] = {}
    if any(video.timestamps for video in videos):
        times["video_timestamps"] = [list(video.timestamps) for video in videos]
    if any(video.second_per_grid is not None for video in videos):
        times["second_per_grid_ts"] = torch.tensor([v.second_per_grid or 0.0 for v in videos])
    return times


def _require_plausible(embedding: Embedding) -> None:
    """Raises `ProtocolError` for a grid that cannot be that of the rows."""
    patches, tokens = math.prod(embedding.grid), len(embedding.rows)
    if not tokens <= patches <= MAX_PATCHES_PER_TOKEN * tokens:
        raise ProtocolError(f"{tokens} embedding rows cannot have the grid {embedding.grid}")


#: SGLang's options that share KV between engines, or keep it for the next one. Such KV is found by
#: the names of its contents, which are those of one engine.
SHARED_KV: Final = (
    "hicache_storage_backend",
    "enable_lmcache",
    "enable_unified_cache_external_linker",
)


def require_kv_of_its_own(server_args: Any) -> None:
    """Raises `ValueError` for an engine whose KV others have, or had: two contents may share it."""
    for option in SHARED_KV:
        if getattr(server_args, option):
            raise ValueError(
                f"--{option.replace('_', '-')}: engines that share KV tell media apart by 30 bits "
                "of a hash, so that a request might get the answer to another: leave the flag out "
                "(--enable-hierarchical-cache alone is safe)"
            )


def leave_tower_out(server_args: Any) -> None:
    """Have the engine that is started with these arguments leave its vision tower out.

    Raises `ValueError` where its model cannot.
    """
    (architecture, *_) = get_sglang_model_config(server_args).hf_config.architectures
    if architecture not in sglang_no_tower.ARCHITECTURES:
        raise ValueError(
            f"--no-local-vision: {architecture} cannot be started without its vision tower, only "
            f"{', '.join(sglang_no_tower.ARCHITECTURES)} can: leave the flag out"
        )
    if os.environ.setdefault(EXTERNAL_MODELS, sglang_no_tower.__name__) != sglang_no_tower.__name__:
        raise ValueError(
            f"--no-local-vision: {EXTERNAL_MODELS} has another use already: unset it, or leave the "
            "flag out"
        )


def keep_features_on_host(server_args: Any) -> None:
    """Have the engine take no GPU memory for features of images, unless the user asks for it.

    SGLang does that by itself for Qwen3-VL on large GPUs, 1 to 3 GiB of them in this process; an
    embedding that comes from elsewhere never passes through.
    """
    legacy = envs.SGLANG_USE_CUDA_IPC_TRANSPORT.is_set()
    if server_args.mm_feature_transport is None and not legacy:
        server_args.mm_feature_transport = "cpu"


def forget_choices(engine: Any) -> None:
    """Have nothing of a request with several choices stay in an engine.

    SGLang derives a name for each choice from the name of the request, notes a state under each,
    and forgets the first of them only. A list of one name is not multiplied.
    """
    manager = engine.tokenizer_manager
    original = manager.generate_request

    def generate_request(request: Any, *args: Any) -> Any:
        sampling = request.sampling_params
        if isinstance(request.rid, str) and isinstance(sampling, dict) and sampling.get("n", 1) > 1:
            request.rid = [request.rid]
        return original(request, *args)

    manager.generate_request = generate_request


def adapters(engine: Any) -> dict[str, int]:
    """Names of the engine's LoRA adapters, with the ids that Dynamo gives to such names."""
    loaded = engine.tokenizer_manager.lora_registry.get_all_adapters()
    return {name: lora_name_to_id(name) for name in loaded}


def num_requests(engine: Any) -> int:
    """Requests that the engine knows, until its scheduler has finished or aborted them."""
    return len(engine.tokenizer_manager.rid_to_state)


def video_options(engine: Any) -> dict[str, Any]:
    """Which frames SGLang takes of a video, and how large (`--mm-process-config`)."""
    return dict(engine.tokenizer_manager.mm_processor.video_config or {})


def max_prompt_tokens(engine: Any) -> int:
    """The longest prompt that the engine accepts, placeholders expanded."""
    manager = engine.tokenizer_manager
    return int(manager.max_req_input_len or manager.context_len)


def embedding_width(engine: Any) -> int:
    """Elements of one embedding row: the text width, once more per deepstack level."""
    config = engine.tokenizer_manager.model_config
    vision = getattr(config.hf_config, "vision_config", None)
    levels = len(getattr(vision, "deepstack_visual_indexes", None) or ())
    return int(config.hidden_size) * (1 + levels)


def model_dtype(engine: Any) -> str:
    """Name of the model's dtype, e.g. `bfloat16`."""
    return str(engine.tokenizer_manager.model_config.dtype).removeprefix("torch.")


def image_token_id(engine: Any) -> int:
    return int(engine.tokenizer_manager.mm_processor.mm_tokens.image_token_id)


def image_processor(engine: Any) -> Any:
    """The model's Hugging Face image processor."""
    return engine.tokenizer_manager.mm_processor._processor.image_processor


async def warm_up(engine: Any, embeddings: EmbeddingInput, width: int) -> None:
    """One request of each kind, so that the first of a user is as fast as the second."""
    token = image_token_id(engine)
    await _run(engine, input_ids=[1, 2])
    references = embeddings.offer([Embedding(torch.zeros(4, width), (1, 4, 4), "0" * 16)])
    try:
        await _run(engine, input_ids=[1, token, 2], image_data=references)
    finally:
        embeddings.withdraw(references)


async def _run(engine: Any, **request: Any) -> None:
    """One request to its end, without a peer where the engine has only half of the work."""
    server_args = engine.tokenizer_manager.server_args
    if server_args.disaggregation_mode != "null":
        request |= {
            "bootstrap_host": FAKE_BOOTSTRAP_HOST,
            "bootstrap_port": server_args.disaggregation_bootstrap_port,
            "bootstrap_room": 0,
        }
    sampling = {"max_new_tokens": 2, "temperature": 0}
    stream = await engine.async_generate(**request, sampling_params=sampling, stream=True)
    async for _ in stream:
        pass


class KvSource(PrefillWorkerHandler):
    """Dynamo's handler of an engine that only prefills; one that was aborted raises here."""

    async def generate(
        self, request: dict[str, Any], context: Any
    ) -> AsyncGenerator[dict[str, Any], None]:
        """One KV for each choice, in a room of its own: decode workers fetch a room once.

        The first chunk names the first room, and the last one comes when all were fetched.
        """
        further = [{"bootstrap_room": room} for room in request.pop(ROOMS_KEY, None) or ()]
        if not further:
            async for chunk in super().generate(request, context):
                yield chunk
            return
        choice = one_choice(request)
        choices = [choice, *({**choice, "bootstrap_info": room} for room in further)]
        async with AsyncExitStack() as stack:
            sources = []
            for choice in choices:
                source = super().generate(choice, context)
                sources.append(await stack.enter_async_context(aclosing(source)))
            names = [await anext(source) for source in sources]
            yield names[0]
            ends = await _ends_of(sources)
            if all(ends):
                yield ends[0]

    async def _consume_results(self, *args: Any) -> dict[str, Any] | None:
        """Dynamo's takes an aborted request for a finished one: decode would wait for minutes."""
        meta_info: dict[str, Any] | None = await super()._consume_results(*args)
        finish_reason = (meta_info or {}).get("finish_reason") or {}
        if finish_reason.get("type") == "abort":
            if finish_reason.get("status_code") == HTTPStatus.BAD_REQUEST:
                _raise_if_sglang_error(finish_reason)
            raise TransferFailed(f"the prefill was aborted: {finish_reason.get('message')}")
        return meta_info


async def _ends_of(sources: Sequence[AsyncIterator[Any]]) -> list[Any]:
    """The last chunk of each, or `None` where there is none. The first error ends all."""

    async def last(source: AsyncIterator[Any]) -> Any:
        return ([chunk async for chunk in source] or [None])[-1]

    try:
        async with asyncio.TaskGroup() as tasks:
            ends = [tasks.create_task(last(source)) for source in sources]
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None
    return [end.result() for end in ends]
