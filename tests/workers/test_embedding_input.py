# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""`EmbeddingInput` on SGLang's own Qwen processor: finished embeddings enter by reference.

The processor is the real class with just what the expansion of a prompt reads; no engine runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from sglang.srt.managers.schedule_batch import (
    Modality,
    MultimodalDataItem,
    MultimodalProcessorOutput,
)
from sglang.srt.multimodal.processors.base_processor import MultimodalSpecialTokens
from sglang.srt.multimodal.processors.qwen_vl import QwenVLImageProcessor

from dynamo.sglang_mm_resume.core.errors import ProtocolError
from dynamo.sglang_mm_resume.core.messages import Received
from dynamo.sglang_mm_resume.workers.decoding import Loaded
from dynamo.sglang_mm_resume.workers.sglang_engine import (
    SHARED_KV,
    Embedding,
    EmbeddingInput,
    modality_of_reference,
    require_kv_of_its_own,
    rows_unseen,
)

WIDTH = 8
VISION_START, VISION_END, PAD, VIDEO_PAD = 101, 102, 103, 104
PICTURE = [VISION_START, PAD, VISION_END]
# A token covers two by two patches: 4 and 6 tokens.
FOUR, SIX = (1, 4, 4), (1, 4, 6)


VIDEO = [VISION_START, VIDEO_PAD, VISION_END]


def _processor(model_type: str = "qwen2_5_vl") -> Any:
    processor = object.__new__(QwenVLImageProcessor)
    processor.model_type = model_type
    processor.hf_config = SimpleNamespace(
        model_type=model_type, vision_config=SimpleNamespace(spatial_merge_size=2)
    )
    processor.IM_START_TOKEN_ID = processor.vision_start_token_id = VISION_START
    processor.IM_END_TOKEN_ID = processor.vision_end_token_id = VISION_END
    processor.IM_TOKEN_ID = PAD
    processor.VIDEO_TOKEN_ID = VIDEO_PAD
    processor._spatial_merge_size = 2
    processor._tokens_per_second = 2
    processor.mm_tokens = MultimodalSpecialTokens(image_token_id=PAD, video_token_id=VIDEO_PAD)
    processor.audio_start_token_id = processor.audio_token_id = None
    processor.others = []

    async def original(*_: Any, **kwargs: Any) -> str:
        processor.others.append(kwargs)
        return "by the original"

    processor.process_mm_data_async = original
    return processor


def _input_of(processor: Any) -> EmbeddingInput:
    manager = SimpleNamespace(mm_processor=processor)
    return EmbeddingInput(SimpleNamespace(tokenizer_manager=manager))


@pytest.fixture
def processor() -> Any:
    return _processor()


@pytest.fixture
def embeddings(processor: Any) -> EmbeddingInput:
    return _input_of(processor)


def _embedding(grid: tuple[int, ...], num_rows: int, dtype: torch.dtype) -> Embedding:
    return Embedding(torch.randn(num_rows, WIDTH).to(dtype), grid, f"{num_rows:016x}")


def _ask(
    processor: Any,
    references: Sequence[Any],
    prompt: Sequence[int],
    videos: Sequence[Any] | None = None,
) -> Any:
    return processor.process_mm_data_async(
        image_data=list(references),
        input_text=list(prompt),
        request_obj=SimpleNamespace(video_data=videos),
    )


def _video(steps: int, rows_of_step: int = 4, **times: Any) -> Embedding:
    """Its rows tell the steps apart."""
    rows = torch.arange(float(steps)).repeat_interleave(rows_of_step).unsqueeze(1)
    return Embedding(
        rows.expand(-1, WIDTH).contiguous(),
        (steps, 4, rows_of_step),
        "00000000000000a0",
        modality="video",
        **times,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
async def test_each_picture_gets_its_own_rows_uncopied(
    processor: Any, embeddings: EmbeddingInput, dtype: torch.dtype
) -> None:
    offered = [_embedding(FOUR, 4, dtype), _embedding(SIX, 6, dtype)]
    references = embeddings.offer(offered)
    output = await _ask(processor, references, [1, *PICTURE, 2, *PICTURE, 3])
    rows = [item.precomputed_embeddings for item in output.mm_items]
    assert [r.data_ptr() for r in rows] == [e.rows.data_ptr() for e in offered]
    assert [r.dtype for r in rows] == [dtype, dtype]
    assert [tuple(r.shape) for r in rows] == [(4, WIDTH), (6, WIDTH)]


async def test_a_picture_is_known_by_its_content_hash(
    processor: Any, embeddings: EmbeddingInput
) -> None:
    offered = [_embedding(FOUR, 4, torch.float32), _embedding(SIX, 6, torch.float32)]
    output = await _ask(processor, embeddings.offer(offered), [*PICTURE, *PICTURE])
    assert [item.hash for item in output.mm_items] == [4, 6]
    assert len({item.pad_value for item in output.mm_items}) == 2


async def test_a_decode_engine_places_pictures_as_a_prefill_engine_does(
    processor: Any, embeddings: EmbeddingInput
) -> None:
    real = [_embedding(SIX, 6, torch.float32), _embedding(FOUR, 4, torch.float32)]
    unseen = [replace(e, rows=rows_unseen(len(e.rows))) for e in real]
    prompt = [1, *PICTURE, 2, *PICTURE, 3]
    prefill, decode = [
        await _ask(processor, embeddings.offer(offered), prompt) for offered in (real, unseen)
    ]
    assert list(decode.input_ids) == list(prefill.input_ids)
    assert decode.mrope_positions.equal(prefill.mrope_positions)
    assert decode.mrope_position_delta.equal(prefill.mrope_position_delta)
    assert [i.pad_value for i in decode.mm_items] == [i.pad_value for i in prefill.mm_items]


async def test_placeholders_are_expanded_where_they_stand(
    processor: Any, embeddings: EmbeddingInput
) -> None:
    offered = [_embedding(SIX, 6, torch.float32), _embedding(FOUR, 4, torch.float32)]
    output = await _ask(processor, embeddings.offer(offered), [1, *PICTURE, 2, *PICTURE, 3])
    six, four = ([VISION_START, *[PAD] * n, VISION_END] for n in (6, 4))
    assert list(output.input_ids) == [1, *six, 2, *four, 3]
    assert [item.offsets for item in output.mm_items] == [[(2, 7)], [(11, 14)]]


async def test_references_decide_the_order(processor: Any, embeddings: EmbeddingInput) -> None:
    offered = [_embedding(FOUR, 4, torch.float32) for _ in range(2)]
    references = embeddings.offer(offered)
    output = await _ask(processor, references[::-1], [*PICTURE, *PICTURE])
    rows = [item.precomputed_embeddings for item in output.mm_items]
    assert [r.data_ptr() for r in rows] == [e.rows.data_ptr() for e in offered[::-1]]


@pytest.mark.parametrize("num_rows", [1, 3, 5, 8])
async def test_another_number_of_rows_than_placeholders_is_refused(
    processor: Any, embeddings: EmbeddingInput, num_rows: int
) -> None:
    references = embeddings.offer([_embedding(FOUR, num_rows, torch.float32)])
    with pytest.raises(ProtocolError):
        await _ask(processor, references, PICTURE)


@pytest.mark.parametrize("grid", [(2**20, 2**20, 2**20), (1, 2**15, 2**15), (1, 1, 3)])
async def test_a_grid_that_cannot_be_that_of_the_rows_is_not_spelled_out(
    processor: Any,
    embeddings: EmbeddingInput,
    grid: tuple[int, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its placeholders alone would fill the memory."""
    monkeypatch.setattr(processor, "get_validated_mm_data", None)
    references = embeddings.offer([_embedding(grid, 4, torch.float32)])
    with pytest.raises(ProtocolError, match="cannot have the grid"):
        await _ask(processor, references, PICTURE)


async def test_rows_missing_in_one_and_left_over_in_the_next_are_refused(
    processor: Any, embeddings: EmbeddingInput
) -> None:
    offered = [_embedding(FOUR, 3, torch.float32), _embedding(FOUR, 5, torch.float32)]
    references = embeddings.offer(offered)
    with pytest.raises(ProtocolError, match=r"3 embedding rows.* 4"):
        await _ask(processor, references, [*PICTURE, *PICTURE])


@pytest.mark.parametrize("other", ["mm-resume:0123", "http://example.com/a.png", {"url": "a"}])
async def test_all_must_be_known_references(
    processor: Any, embeddings: EmbeddingInput, other: Any
) -> None:
    (reference,) = embeddings.offer([_embedding(FOUR, 4, torch.float32)])
    with pytest.raises(ProtocolError, match="not here"):
        await _ask(processor, [reference, other], [*PICTURE, *PICTURE])


@pytest.mark.parametrize("images", [None, [], ["http://example.com/a.png"]], ids=str)
async def test_other_requests_go_to_the_original(
    processor: Any, embeddings: EmbeddingInput, images: list[str] | None
) -> None:
    request = {"image_data": images, "input_text": [1]}
    assert await processor.process_mm_data_async(**request) == "by the original"
    assert processor.others == [request]


async def test_pictures_are_for_the_engines_own_tower(
    processor: Any, embeddings: EmbeddingInput
) -> None:
    pictures = [Image.new("RGB", (28, 28), colour) for colour in ("red", "blue")]
    references = embeddings.offer([Loaded(picture, "0" * 64) for picture in pictures])
    assert await _ask(processor, references[::-1], [*PICTURE, *PICTURE]) == "by the original"
    (request,) = processor.others
    assert request["image_data"] == pictures[::-1]


async def test_withdrawn_embeddings_are_forgotten(
    processor: Any, embeddings: EmbeddingInput
) -> None:
    references = embeddings.offer([_embedding(FOUR, 4, torch.float32) for _ in range(2)])
    assert len(embeddings) == 2
    embeddings.withdraw(references[:1])
    assert len(embeddings) == 1
    with pytest.raises(ProtocolError, match="not here"):
        await _ask(processor, references[:1], PICTURE)
    assert (await _ask(processor, references[1:], PICTURE)).mm_items
    embeddings.withdraw(references)
    assert len(embeddings) == 0


async def test_the_same_reference_serves_every_choice_of_a_request(
    processor: Any, embeddings: EmbeddingInput
) -> None:
    references = embeddings.offer([_embedding(FOUR, 4, torch.float32)])
    outputs = [await _ask(processor, references, PICTURE) for _ in range(2)]
    pointers = {output.mm_items[0].precomputed_embeddings.data_ptr() for output in outputs}
    assert len(pointers) == 1


# --- names: contents whose hashes meet in the 30 bits that SGLang tells them apart by ---

MEETING = 0xA0
"""What the hashes below have in common, in the bits that matter."""
RED, BLUE = (f"{MEETING + (high << 30):016x}" + "0" * 48 for high in (1, 2))


def _named(content: str) -> Embedding:
    return replace(_embedding(FOUR, 4, torch.float32), content=content)


async def _pads(processor: Any, embeddings: EmbeddingInput, *offered: Embedding) -> list[int]:
    output = await _ask(processor, embeddings.offer(offered), PICTURE * len(offered))
    return [item.pad_value for item in output.mm_items]


async def test_contents_that_meet_are_told_apart_for_good(
    processor: Any, embeddings: EmbeddingInput
) -> None:
    red, blue = _named(RED), _named(BLUE)
    first = await _pads(processor, embeddings, red)
    assert first == [1_000_000 + MEETING], "what the KV router takes it for"
    pads = await _pads(processor, embeddings, blue, red, blue)
    assert pads == [pads[0], *first, pads[0]]
    assert pads[0] != first[0]
    assert embeddings.names_status == {"remembered": 2, "moved": 1}


async def test_an_image_and_a_step_of_a_video_that_meet_are_told_apart(
    with_time_stamps: Any,
) -> None:
    embeddings = _input_of(with_time_stamps)
    video = replace(_video(3, timestamps=(0.25, 1.25, 12.5)), content=RED)
    meets = [_named(RED), _named(f"{MEETING ^ 1:016x}" + "0" * 48)]
    *images, own = embeddings.offer([*meets, video])
    output = await _ask(with_time_stamps, images, [*VIDEO, *PICTURE, *PICTURE], [own])
    assert len({item.pad_value for item in output.mm_items}) == 5


async def test_an_image_and_a_video_of_one_hash_are_told_apart(
    processor: Any, embeddings: EmbeddingInput
) -> None:
    image, video = embeddings.offer([_named(RED), replace(_video(2), content=RED)])
    output = await _ask(processor, [image], [*PICTURE, *VIDEO], [video])
    assert len({item.pad_value for item in output.mm_items}) == 2


async def test_what_a_worker_of_version_2_has_named_shares_with_no_other_request(
    processor: Any, embeddings: EmbeddingInput
) -> None:
    """Its 64 bits may be another's. All choices of one request share all the same."""
    described = {"modality": "image", "total_tokens": 4, "grid": FOUR, "content_hash": RED[:16]}
    received = [Received(transfer_id=f"transfer-{i}", **described) for i in range(2)]
    offered = [Embedding.of(item, torch.zeros(4, WIDTH)) for item in received]
    pads = [await _pads(processor, embeddings, item) for item in (*offered, *offered)]
    assert pads[:2] == pads[2:]
    assert pads[0] != pads[1]


def _by_own_tower(processor: Any, num_items: int | None = None) -> EmbeddingInput:
    """The engine's own tower: SGLang makes as many items, and knows all by one hash."""

    async def original(*_: Any, **kwargs: Any) -> Any:
        places = range(num_items or len(kwargs["image_data"]))
        items = [
            MultimodalDataItem(modality=Modality.IMAGE, offsets=[(4 * i, 4 * i + 3)])
            for i in places
        ]
        for item in items:
            item.set_hash(MEETING)
        return MultimodalProcessorOutput(
            mm_items=items,
            input_ids=[PAD] * 4 * len(items),
            padded_input_ids=[1_000_000 + MEETING] * 4 * len(items),
        )

    processor.process_mm_data_async = original
    return _input_of(processor)


def _loaded(content: str) -> Loaded:
    return Loaded(Image.new("RGB", (28, 28)), content)


async def test_images_for_the_own_tower_are_told_apart_by_their_content(processor: Any) -> None:
    embeddings = _by_own_tower(processor)
    red, blue = _loaded(RED), _loaded(BLUE)
    outputs = [await _ask(processor, embeddings.offer(o), []) for o in ([red], [blue, red])]
    first, (other, again) = ([item.pad_value for item in o.mm_items] for o in outputs)
    assert first == [again] == [1_000_000 + MEETING]
    assert other != again
    # It has SGLang's names; without it, the scheduler fills the prompt by those of the items.
    assert [output.padded_input_ids for output in outputs] == [None, None]


async def test_an_image_and_its_embedding_are_told_apart(processor: Any) -> None:
    """One tower's rows need not be the other's to the last bit."""
    embedded = await _pads(processor, embeddings := _input_of(processor), _named(RED))
    own = _by_own_tower(processor)
    own.names = embeddings.names
    output = await _ask(processor, own.offer([_loaded(RED)]), [])
    assert [item.pad_value for item in output.mm_items] != embedded


async def test_an_image_that_is_not_loaded_here_shares_with_nobody(processor: Any) -> None:
    embeddings = _by_own_tower(processor)
    asked = [await _ask(processor, ["http://example.com/a.png"], []) for _ in range(2)]
    pads = {output.mm_items[0].pad_value for output in asked}
    assert len(pads | {1_000_000 + MEETING}) == 3
    assert len(embeddings.names) == 2


async def test_items_that_sglang_cuts_otherwise_are_told_apart(processor: Any) -> None:
    embeddings = _by_own_tower(processor, num_items=3)
    pads = []
    for content in (RED, BLUE, RED):
        output = await _ask(processor, embeddings.offer([_loaded(content)]), [])
        pads.append([item.pad_value for item in output.mm_items])
    assert pads[0] == pads[2]
    assert len({*pads[0], *pads[1]}) == 6


async def test_hashes_of_a_request_name_nothing(processor: Any, embeddings: EmbeddingInput) -> None:
    """SGLang would put them in place of ours."""
    request = SimpleNamespace(video_data=None, mm_hashes=["a0"])
    await processor.process_mm_data_async(
        image_data=embeddings.offer([_named(RED)]), input_text=PICTURE, request_obj=request
    )
    assert request.mm_hashes is None


@pytest.mark.parametrize("option", SHARED_KV)
def test_kv_that_engines_share_is_refused(option: str) -> None:
    own = dict.fromkeys(SHARED_KV)
    require_kv_of_its_own(SimpleNamespace(**own))
    with pytest.raises(ValueError, match=f"^--{option.replace('_', '-')}: "):
        require_kv_of_its_own(SimpleNamespace(**own | {option: "file"}))


# --- videos ---


async def test_an_image_and_a_video_get_their_places(
    processor: Any, embeddings: EmbeddingInput
) -> None:
    image, video = _embedding(SIX, 6, torch.float32), _video(2, second_per_grid=1.0)
    image_reference, video_reference = embeddings.offer([image, video])
    prompt = [1, *VIDEO, 2, *PICTURE, 3]
    output = await _ask(processor, [image_reference], prompt, [video_reference])
    spelled = [1, VISION_START, *[VIDEO_PAD] * 8, VISION_END]
    assert list(output.input_ids) == [*spelled, 2, VISION_START, *[PAD] * 6, VISION_END, 3]
    first, second = output.mm_items
    assert first.is_modality(Modality.VIDEO)
    assert first.precomputed_embeddings.data_ptr() == video.rows.data_ptr()
    assert second.precomputed_embeddings.data_ptr() == image.rows.data_ptr()
    assert [first.hash, second.hash] == [0xA0, 6]


async def test_the_seconds_of_a_step_decide_its_positions(
    processor: Any, embeddings: EmbeddingInput
) -> None:
    """Also behind an image, which has none."""
    positions = []
    for seconds in (1.0, 4.0):
        image, video = _embedding(FOUR, 4, torch.float32), _video(2, second_per_grid=seconds)
        images, videos = ([reference] for reference in embeddings.offer([image, video]))
        output = await _ask(processor, images, [*PICTURE, *VIDEO], videos)
        positions.append(output.mrope_positions)
    # Two seconds of position a second: the second step is 2 or 8 behind the first.
    second_step = slice(4 + 2 + 1 + 4, 4 + 2 + 1 + 8)
    first_step = slice(4 + 2 + 1, 4 + 2 + 1 + 4)
    between = [p[0, second_step] - p[0, first_step] for p in positions]
    assert [b.tolist() for b in between] == [[2] * 4, [8] * 4]


@pytest.fixture
def with_time_stamps() -> Any:
    """A processor of Qwen3-VL, whose tokens of a time stamp are its characters."""
    processor = _processor("qwen3_vl")
    encode = SimpleNamespace(encode=lambda text, **_: [ord(letter) for letter in text])
    processor._processor = SimpleNamespace(tokenizer=encode)
    return processor


async def test_each_step_of_a_video_with_time_stamps_is_an_item(with_time_stamps: Any) -> None:
    embeddings = _input_of(with_time_stamps)
    image, video = _embedding(FOUR, 4, torch.float32), _video(3, timestamps=(0.25, 1.25, 12.5))
    images, videos = ([reference] for reference in embeddings.offer([image, video]))
    output = await _ask(with_time_stamps, images, [*VIDEO, *PICTURE], videos)
    text = "".join(chr(token) for token in output.input_ids)
    step = chr(VISION_START) + chr(VIDEO_PAD) * 4 + chr(VISION_END)
    times = ("<0.2 seconds>", "<1.2 seconds>", "<12.5 seconds>")
    expected = chr(VISION_START) + "".join(time + step for time in times) + chr(VISION_END)
    assert text.startswith(expected)
    steps = output.mm_items[:3]
    assert [item.precomputed_embeddings[:, 0].tolist() for item in steps] == [
        [0.0] * 4,
        [1.0] * 4,
        [2.0] * 4,
    ]
    assert len({item.hash for item in output.mm_items}) == 4
    # What travels to the scheduler is a step, not the whole video each time.
    sizes = [item.precomputed_embeddings.untyped_storage().nbytes() for item in steps]
    assert sizes == [4 * WIDTH * 4] * 3


async def test_a_model_without_time_stamps_refuses_a_video_that_has_them(
    processor: Any, embeddings: EmbeddingInput
) -> None:
    references = embeddings.offer([_video(2, timestamps=(0.25, 1.25))])
    with pytest.raises(ProtocolError, match="places for 1 embeddings, not 2"):
        await _ask(processor, [], VIDEO, references)


async def test_a_video_that_is_not_there_is_refused(
    processor: Any, embeddings: EmbeddingInput
) -> None:
    references = embeddings.offer([_embedding(FOUR, 4, torch.float32)])
    with pytest.raises(ProtocolError, match="do not fit their prompt"):
        await _ask(processor, references, [*PICTURE, *VIDEO])


def test_references_tell_images_from_videos(embeddings: EmbeddingInput) -> None:
    picture = Loaded(Image.new("RGB", (28, 28)), "0" * 64)
    offered = [_video(2), _embedding(FOUR, 4, torch.float32), picture]
    modalities = [modality_of_reference(reference) for reference in embeddings.offer(offered)]
    assert modalities == ["video", "image", "image"]
