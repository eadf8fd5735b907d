"""Questions about pictures for a small random model, and what transformers answers, unsplit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from tests.support.cases.qwen3_vl import IMAGE, TOWER
from tests.support.chain import GREEDY, Logits
from tests.support.families import prompt_ids, reference_model
from together.models.eyes import Eyes, positions_of
from together.picture import Picture
from together.text.pictures import Sight
from together.types import Row, SampleRequest

EYES = Eyes(patch=4, merge=2, token=IMAGE, width=128, layers=2)
LEAST, MOST = 16 * 8**2, 60 * 8**2  # pixels
START, END = 148, 149  # tokens around a picture


@cache
def photo(width: int, height: int, seed: int = 0, kind: str = "PNG") -> bytes:
    """A file of random pixels, blurred as pictures are."""
    small = np.random.default_rng(seed).integers(0, 256, (height // 4 + 1, width // 4 + 1, 3), dtype=np.uint8)
    file = BytesIO()
    Image.fromarray(small).resize((width, height), Image.Resampling.BILINEAR).save(file, kind)
    return file.getvalue()


def processor() -> Any:
    return Qwen2VLImageProcessorPil(
        size={"shortest_edge": LEAST, "longest_edge": MOST},
        patch_size=TOWER["patch_size"],
        merge_size=TOWER["spatial_merge_size"],
        temporal_patch_size=TOWER["temporal_patch_size"],
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )


@dataclass(frozen=True)
class Question:
    """A prompt with pictures, in ids."""

    ids: tuple[int, ...]
    pictures: tuple[Picture, ...]
    files: tuple[bytes, ...]

    @classmethod
    def of(cls, *parts: bytes | Sequence[int]) -> Question:
        """Of files and texts, in order."""
        sight = Sight(EYES, LEAST, MOST)
        ids: list[int] = []
        pictures: list[Picture] = []
        for part in parts:
            if not isinstance(part, bytes):
                ids += part
                continue
            picture = replace(sight.read(part), offset=len(ids) + 1)
            ids += [START, *[IMAGE] * picture.tokens, END]
            pictures.append(picture)
        return cls(tuple(ids), tuple(pictures), tuple(part for part in parts if isinstance(part, bytes)))

    def row(self, sequence: int, start: int = 0, stop: int | None = None, at: str = "all") -> Row:
        """A part of it, as the scheduler makes a row."""
        stop = len(self.ids) if stop is None else stop
        offsets = {"all": tuple(range(stop - start)), "last": (stop - start - 1,), "none": ()}[at]
        return Row(
            sequence,
            start,
            self.ids[start:stop],
            SampleRequest(offsets, GREEDY, len(self.ids)) if offsets else None,
            positions_of(self.pictures, start, stop),
            pictures=tuple(
                replace(picture, offset=picture.offset - start)
                for picture in self.pictures
                if picture.offset < stop and picture.offset + picture.tokens > start
            ),
        )

    def reference(self, folder: Path, answer: Sequence[int] = ()) -> Logits:
        """`[tokens, vocab]` of the unsplit model, in fp32."""
        ids = torch.tensor([[*self.ids, *answer]])
        given = processor()([Image.open(BytesIO(file)) for file in self.files], return_tensors="pt")
        model = reference_model(folder)
        model.model.rope_deltas = None
        with torch.inference_mode():
            found = model(ids, **given, mm_token_type_ids=(ids == IMAGE).int(), use_cache=False)
        logits: Logits = found.logits[0].float().numpy()
        return logits

    def greedy(self, folder: Path, count: int) -> tuple[int, ...]:
        answer: list[int] = []
        for _ in range(count):
            answer.append(int(self.reference(folder, answer)[-1].argmax()))
        return tuple(answer)


def text(length: int, seed: int = 0) -> tuple[int, ...]:
    """Ids without any that stand for a picture's parts."""
    return tuple(token % START if token >= START else token for token in prompt_ids(length, seed))
