"""Pictures of a chat: from a file's bytes to the size in which a model sees them, and to their places in a prompt.

The head decides the size, for it must know how many tokens a picture is; the first stage turns pixels into numbers.
Nothing is fetched: a picture comes with its request.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import warnings
from base64 import b64decode
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from together.errors import BadRequest
from together.models.eyes import MOST_PARTS, Eyes
from together.models.families import BY_NAME
from together.models.family import no_opening
from together.models.folder import read_json
from together.models.manifest import CONFIG
from together.models.spec import ModelSpec
from together.models.values import Values
from together.picture import Picture
from together.requests import LOCAL, ChatRequest, Message, Owner
from together.sentences import Sentence, Value, say, template

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("PNG", "JPEG", "WEBP")
MOST_FILE = 16 * 2**20  # bytes
MOST_PIXELS = 50_000_000  # of a file, as cameras have them: up to 0.7 GB while it is read (a JPEG of several passes)
MOST_WEBP = MOST_PIXELS // 4  # its decoder takes four times the memory for each
MOST_PICTURES = 16  # of a conversation
NARROWEST = 200  # a picture is at most so many times as long as it is wide
_LEAST, _MOST = 256 * 256, 4096 * 4096  # pixels, where preprocessor_config.json is silent
_STRIP = 256  # rows of a picture that are changed at once
_TURNS = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}  # Pillow's transpositions by EXIF's orientations
_SIDEWAYS = (2, 4, 5, 6)  # those that make width of height
_NEXT = ("qwen3_5", "qwen3_5_moe", "gemma4")  # wrappers of families whose towers do not run here yet
_PROCESSOR = "preprocessor_config.json"


@dataclass(frozen=True, slots=True)
class Sight:
    """How a model's pictures are prepared: away from the event loop, one at a time."""

    eyes: Eyes
    least: int  # pixels that a picture is made larger to
    most: int  # and smaller to

    async def prepare(self, messages: Sequence[Message], check: Callable[[int], None]) -> tuple[Picture, ...]:
        """All pictures of a conversation, in order. Raises BadRequest, and what `check` raises.

        It gets the bytes that they all will have, before any is decoded.
        """
        asked = [(f"messages.{index}.content", each.data) for index, m in enumerate(messages) for each in m.pictures]
        if len(asked) > MOST_PICTURES:
            text = "{where}: a conversation has at most {most} pictures; leave earlier ones out"
            raise BadRequest(text, asked[-1][0], where=asked[-1][0], most=MOST_PICTURES)
        run = partial(asyncio.get_running_loop().run_in_executor, _thread())
        check(sum(await asyncio.gather(*(run(self.measure, data, where) for where, data in asked))))
        each = [run(self.read, data, where) for where, data in asked]
        try:
            return tuple(await asyncio.gather(*each))
        finally:
            for picture in each:  # nobody waits for the others where one is refused
                picture.cancel()

    def measure(self, data: bytes | str, where: str = "messages") -> int:
        """The bytes of a file's picture as the model sees it, by the file's beginning. Raises BadRequest."""
        with _opened(_file(data, where), where) as opened:
            width, height = self.size(*opened.size)
        return 3 * width * height

    def read(self, data: bytes | str, where: str = "messages") -> Picture:
        """A file's picture as the model sees it. Raises BadRequest."""
        from PIL import Image

        with _opened(_file(data, where), where) as opened:
            turn = _TURNS.get(_orientation(opened))
            sideways = turn in _SIDEWAYS
            width, height = self.size(*(opened.size[::-1] if sideways else opened.size))
            small = _coloured(opened, *((height, width) if sideways else (width, height)))
            return self.picture(small if turn is None else small.transpose(Image.Transpose(turn)))

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Whole squares near a size, within the bounds, and of the same shape: transformers' `smart_resize`."""
        side = self.eyes.side
        wide, high = round(width / side) * side, round(height / side) * side
        if wide * high > self.most:
            less = math.sqrt(height * width / self.most)
            wide, high = (max(side, math.floor(each / less / side) * side) for each in (width, height))
        elif wide * high < self.least:
            more = math.sqrt(self.least / (height * width))
            wide, high = (math.ceil(each * more / side) * side for each in (width, height))
        return wide, high

    def picture(self, image: Image) -> Picture:
        """An image of whole squares; where it stands in a prompt is not known yet."""
        side, pixels = self.eyes.side, image.tobytes()
        key = hashlib.sha256(b"%d %d %d " % (image.width, image.height, side) + pixels).hexdigest()
        return Picture(0, image.height // side, image.width // side, side, pixels, key)


@cache
def _thread() -> ThreadPoolExecutor:
    """One for all models of a head: what a large picture takes while it is read, it takes once."""
    return ThreadPoolExecutor(1, "pictures")


def _file(data: bytes | str, where: str) -> bytes:
    if len(data) > (MOST_FILE if isinstance(data, bytes) else MOST_FILE * 4 // 3 + 4):
        raise _refusal(where, "its file has more than {most} MB", most=MOST_FILE // 2**20)
    try:
        return data if isinstance(data, bytes) else b64decode(data, validate=True)
    except ValueError as error:
        raise _refusal(where, "it is not in base64") from error


def kind_of(data: bytes) -> str:
    """The media type of a picture's file that can be read, as far as its beginning says. Raises BadRequest."""
    with _opened(data, "body") as image:
        kind = str(image.format).lower()
        return "image/jpeg" if kind == "mpo" else f"image/{kind}"  # a phone's, with more behind it


@contextmanager
def _opened(data: bytes, where: str) -> Iterator[Image]:
    """A file within the limits; what Pillow raises for it becomes a BadRequest."""
    # Pillow takes a while to import, and few conversations have pictures.
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit is lower
            opened = Image.open(BytesIO(data), formats=FORMATS)
        _check_size(where, *opened.size, MOST_WEBP if opened.format == "WEBP" else MOST_PIXELS)
        yield opened
    except UnidentifiedImageError as error:
        raise _refusal(where, "it is none of {formats}", formats=FORMATS) from error
    except Image.DecompressionBombError as error:
        raise _refusal(where, "it has more than {most} pixels", most=MOST_PIXELS) from error
    except (BadRequest, MemoryError):
        raise
    except Exception as error:  # of a broken file a decoder may raise anything
        raise _refusal(where, "it is broken, or not whole") from error


def _orientation(image: Image) -> int:
    """The one tag that matters: others may be broken, and nobody has to write them again."""
    found = image.getexif().get(0x0112)
    return found if isinstance(found, int) else 1


def _coloured(image: Image, width: int, height: int) -> Image:
    """In colours on white, and of this size.

    In strips, so that a large picture is in memory once: resizing is across and then down anyway, to the same bytes.
    """
    from PIL import Image

    narrow = Image.new("RGB", (width, image.height))
    for top in range(0, image.height, _STRIP):
        strip = image.crop((0, top, image.width, min(top + _STRIP, image.height)))
        across = _on_white(strip).resize((width, strip.height), Image.Resampling.BICUBIC)
        narrow.paste(across, (0, top))
    return narrow.resize((width, height), Image.Resampling.BICUBIC)


def _on_white(image: Image) -> Image:
    """What is transparent shows the page below it, and 16 bits of grey become 8. Raises ValueError."""
    from PIL import Image

    if image.mode.startswith("I"):
        if "transparency" in image.info:
            raise ValueError("a shade of 16 bits that is transparent")
        return image.point(lambda grey: grey * (1 / 257) + 0.5).convert("L").convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    white = Image.new("RGBA", image.size, "white")
    white.alpha_composite(image.convert("RGBA"))
    return white.convert("RGB")


def read_sight(folder: Path, spec: ModelSpec) -> Sight | Sentence:
    """How the model in `folder` sees, or why it does not. Raises BrokenModel."""
    published = read_json(folder, CONFIG)
    if spec.eyes is None:
        if published.get("model_type") in _NEXT and published.get("vision_config"):
            return say("pictures_later", model=spec.name)
        family = BY_NAME.get(spec.family)
        if family is not None and family.tower is not no_opening:  # also where a file has no word of its tower
            return say("pictures_no_tower", model=spec.name)
        return say("pictures_none", model=spec.name)
    found = read_json(folder, _PROCESSOR) if (folder / _PROCESSOR).is_file() else {}
    if any(found.get(key, usual) != usual for key, usual in _fixed(spec.eyes).items()):
        return say("pictures_otherwise", model=spec.name, file=_PROCESSOR)
    size = found.get("size")
    bounds = Values(spec.name, size if isinstance(size, dict) else {})
    square = spec.eyes.side**2
    most = max(square, min(bounds.count("longest_edge", _MOST), MOST_PARTS * square))
    return Sight(spec.eyes, min(bounds.count("shortest_edge", _LEAST), most), most)


def _fixed(eyes: Eyes) -> dict[str, object]:
    """What a preprocessor must say, if anything: a stage computes nothing else."""
    half = [0.5, 0.5, 0.5]
    steps = dict.fromkeys(("do_resize", "do_rescale", "do_normalize", "do_convert_rgb"), True)
    return {"image_mean": half, "image_std": half, "patch_size": eyes.patch, "merge_size": eyes.merge, **steps}


def refuse_marks(request: ChatRequest, mark: str | None) -> None:
    """Raises BadRequest where a text has the word that stands for a picture: nobody could tell them apart."""
    where = next((place for place, text in _texts(request) if mark and mark in text), None)
    if where is not None:
        text = "{where}: the text has {mark}, which stands for a picture; leave it out"
        raise BadRequest(text, where, where=where, mark=mark or "")


def _texts(request: ChatRequest) -> Iterator[tuple[str, str]]:
    """All that a template may write into a prompt, each behind its place in the request."""
    for index, message in enumerate(request.messages):
        yield f"messages.{index}.content", message.content
        yield f"messages.{index}.reasoning_content", message.reasoning
        for call in message.tool_calls:
            yield f"messages.{index}.tool_calls", f"{call.name}\n{call.arguments}"
    for index, tool in enumerate(request.tool_use.tools):
        parameters = json.dumps(tool.parameters, ensure_ascii=False)
        yield f"tools.{index}.function", f"{tool.name}\n{tool.description}\n{parameters}"
    yield "chat_template_kwargs", json.dumps(dict(request.template), ensure_ascii=False, default=str)


def of_owner(picture: Picture, owner: Owner) -> Picture:
    """With a key of its owner's: what a stage keeps of a picture tells no other owner by its speed that it was seen."""
    if owner == LOCAL:
        return picture
    return replace(picture, key=hashlib.sha256(f"{owner} {picture.key}".encode()).hexdigest())


def placed(
    prompt: Sequence[int], pictures: Sequence[Picture], token: int
) -> tuple[tuple[int, ...], tuple[Picture, ...]]:
    """A prompt in which each of a picture's tokens is there, and where the pictures are.

    In `prompt` one `token` stands for each. Raises BadRequest where there are more or fewer.
    """
    ids: list[int] = []
    found: list[Picture] = []
    for each in prompt:
        if each != token:
            ids.append(each)
        elif len(found) < len(pictures):
            picture = replace(pictures[len(found)], offset=len(ids))
            ids.extend([token] * picture.tokens)
            found.append(picture)
        else:
            text = "the text of the request has a word that stands for a picture, in another spelling; leave it out"
            raise BadRequest(text, "messages")
    if len(found) < len(pictures):
        text = "the chat template of this model does not say where the pictures are; load another version of the model"
        raise BadRequest(text, "messages")
    return tuple(ids), tuple(found)


def _check_size(where: str, width: int, height: int, most: int) -> None:
    if width * height > most:
        raise _refusal(where, "it has more than {most} pixels", most=most)
    if max(width, height) > NARROWEST * min(width, height):
        raise _refusal(where, "it is more than {most} times as long as it is wide", most=NARROWEST)


def _refusal(where: str, english: str, **values: Value) -> BadRequest:
    text = "{where}: the picture cannot be read: {fault}; send another one"
    return BadRequest(text, where, where=where, fault=template(english, **values))
