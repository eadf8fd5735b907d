"""Questions about pictures for a small random model, and what transformers answers, unsplit."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import AddedToken
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from tests.support.cases.qwen3_vl import IMAGE, TOWER
from tests.support.chain import GREEDY, Logits
from tests.support.families import make_checkpoint, prompt_ids, reference_model
from tests.support.tokenizers import byte_level, write_text_files
from together.models.eyes import Eyes, positions_of
from together.picture import Picture
from together.requests import Message
from together.text.pictures import Sight
from together.text.tokenizer import TextModel
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
    token: int = IMAGE

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
        images = [Image.open(BytesIO(file)) for file in self.files]
        given = processor()(images, return_tensors="pt") if images else {}
        model = reference_model(folder)
        model.model.rope_deltas = None
        with torch.inference_mode():
            found = model(ids, **given, mm_token_type_ids=(ids == self.token).int(), use_cache=False)
        logits: Logits = found.logits[0].float().numpy()
        return logits

    def greedy(self, folder: Path, count: int, end: int = -1) -> tuple[int, ...]:
        """Up to the token `end`."""
        answer: list[int] = []
        while len(answer) < count:
            token = int(self.reference(folder, answer)[-1].argmax())
            if token == end:
                break
            answer.append(token)
        return tuple(answer)


def text(length: int, seed: int = 0) -> tuple[int, ...]:
    """Ids without any that stand for a picture's parts."""
    return tuple(token % START if token >= START else token for token in prompt_ids(length, seed))


# --- a whole model folder ---------------------------------------------------------------------------------------------

MARKS = ("<|vision_start|>", "<|image_pad|>", "<|vision_end|>")
TEMPLATE = (  # in the style of Qwen3-VL's
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
EOS = 1


def write_seeing(folder: Path) -> Path:
    """A model with words, a template and a preprocessor's settings, as publishers have them."""
    tokenizer = byte_level()
    tokenizer.add_special_tokens([AddedToken(mark, special=True) for mark in MARKS])
    size, pad = tokenizer.get_vocab_size(), tokenizer.token_to_id(MARKS[1])
    make_checkpoint(folder, "qwen3_vl", vocab_size=size, eos_token_id=EOS, image_token_id=pad, video_token_id=size - 1)
    given = {"size": {"shortest_edge": LEAST, "longest_edge": MOST}, "patch_size": 4, "merge_size": 2}
    given |= {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(given), encoding="utf-8")
    return write_text_files(folder, tokenizer, TEMPLATE, eos=EOS)


def asked(folder: Path, *messages: Message) -> Question:
    """A conversation in ids, put together by other means than the head's: pictures replace their marks in the text."""
    model, sight = TextModel.open(folder), Sight(EYES, LEAST, MOST)
    files = [each.data for message in messages for each in message.pictures]
    pictures = [sight.read(file) for file in files]
    pieces = model.template.render(messages).result().split(MARKS[1])
    pad: Any = model.tokenizer.token_to_id(MARKS[1])
    ids, places = list(model.encode(pieces[0])), []
    for picture, piece in zip(pictures, pieces[1:], strict=True):
        places.append(replace(picture, offset=len(ids)))
        ids += [*[pad] * picture.tokens, *model.encode(piece)]
    return Question(tuple(ids), tuple(places), tuple(file for file in files if isinstance(file, bytes)), pad)


def right_answer(folder: Path, *messages: Message, tokens: int = 12) -> str:
    """Of transformers, unsplit and without caches."""
    return TextModel.open(folder).tokenizer.decode(asked(folder, *messages).greedy(folder, tokens, EOS))
