"""Pictures of a chat: which files are read, in what size, and where they stand in a prompt."""

from __future__ import annotations

import json
import struct
import zlib
from base64 import b64encode
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from tests.support.vision import EYES, LEAST, MOST, photo, write_seeing
from together.errors import BadRequest, QueueFull
from together.models.eyes import MOST_PARTS
from together.models.spec import read_spec
from together.requests import Attached, ChatRequest, Message, Tool, ToolCall, ToolUse
from together.sentences import Sentence
from together.text.pictures import MOST_FILE, MOST_PICTURES, Sight, placed, read_sight, refuse_marks
from together.text.tool_formats import HERMES
from together.text.tool_turns import joined, turns

SIGHT = Sight(EYES, LEAST, MOST)


def chat(*messages: Message) -> ChatRequest:
    return ChatRequest(messages)


def bomb(width: int, height: int) -> bytes:
    """A PNG of 100 bytes that says it is so large."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(bytes(9))), (b"IEND", b""))
    parts = (struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def saved(image: Image.Image, kind: str, **how: object) -> bytes:
    file = BytesIO()
    image.save(file, kind, **how)
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "it is none of PNG, JPEG, WEBP"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "it is none of"),
        (saved(Image.new("RGB", (40, 40)), "GIF"), "it is none of"),
        (photo(80, 80)[:-200], "it is broken, or not whole"),
        (bomb(60_000, 60_000), "more than 50000000 pixels"),
        (bomb(8000, 8000), "more than 50000000 pixels"),
        (saved(Image.new("L", (4000, 4000)), "WEBP", lossless=True), "more than 12500000 pixels"),
        (bomb(40, 40), "it is broken, or not whole"),
        (saved(Image.new("RGB", (402, 2)), "PNG"), "more than 200 times as long as it is wide"),
        (bytes(MOST_FILE + 1), "its file has more than 16 MB"),
        ("?!", "it is not in base64"),
    ],
)
def test_what_is_no_picture_is_refused_by_name(data: bytes | str, said: str) -> None:
    with pytest.raises(BadRequest, match=said) as refusal:
        SIGHT.read(data, "messages.3.content")
    assert refusal.value.param == "messages.3.content"
    assert "; send another one" in str(refusal.value)


def test_a_picture_is_read_upright_and_in_colours() -> None:
    image = Image.new("RGB", (64, 32), "white")
    turned = saved(image, "JPEG", exif=_turned())
    assert (SIGHT.read(turned).rows, SIGHT.read(turned).columns) == (8, 4)
    for mode in ("L", "RGBA", "P", "1", "CMYK"):
        kind = "JPEG" if mode == "CMYK" else "PNG"
        assert SIGHT.read(saved(image.convert(mode), kind)).pixels == SIGHT.read(saved(image, "PNG")).pixels


@pytest.mark.parametrize("orientation", range(1, 9))
def test_each_way_to_hold_a_camera(orientation: int) -> None:
    """As Pillow turns it; what is made smaller first differs in the last digit."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.open(BytesIO(photo(96, 40)))
    found = SIGHT.read(saved(image, "PNG", exif=exif))
    wanted = SIGHT.read(saved(ImageOps.exif_transpose(Image.open(BytesIO(saved(image, "PNG", exif=exif)))), "PNG"))
    assert (found.rows, found.columns) == (wanted.rows, wanted.columns)
    assert max(abs(one - other) for one, other in zip(found.pixels, wanted.pixels, strict=True)) <= 2


def test_exif_that_is_broken_beside_the_orientation_is_left_alone() -> None:
    entries = struct.pack("<HHIHH", 0x112, 3, 1, 6, 0) + struct.pack("<HHI4s", 0x11A, 2, 4, b"72\0\0")
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + entries + bytes(4)
    found = SIGHT.read(saved(Image.new("RGB", (64, 32)), "JPEG", exif=exif))
    assert (found.rows, found.columns) == (8, 4)


def test_whatever_a_decoder_raises_is_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Image.Image) -> None:
        raise struct.error("unpack requires a buffer of 4 bytes")

    monkeypatch.setattr(Image.Image, "getexif", fail)
    with pytest.raises(BadRequest, match="it is broken, or not whole; send another one"):
        SIGHT.read(photo(40, 40))


def test_grey_of_16_bits_keeps_its_shades() -> None:
    shades = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)
    wanted = Image.fromarray(np.round(shades / 257).astype(np.uint8))
    image = Image.fromarray(shades)
    assert image.mode == "I;16"
    found, right = (SIGHT.read(saved(each, "PNG")).pixels for each in (image, wanted))
    assert max(abs(one - other) for one, other in zip(found, right, strict=True)) <= 1
    with pytest.raises(BadRequest, match="it is broken"):
        SIGHT.read(transparent_grey(saved(image, "PNG")))


def transparent_grey(png: bytes) -> bytes:
    """With a shade of 16 bits that is transparent."""
    chunk = b"tRNS\0\7"
    at = png.index(b"IDAT") - 4
    return png[:at] + struct.pack(">I", 2) + chunk + struct.pack(">I", zlib.crc32(chunk)) + png[at:]


def test_what_is_transparent_becomes_white() -> None:
    clear = Image.new("RGBA", (64, 64))
    grey = Image.new("LA", (64, 64), (0, 0))
    palette = Image.new("P", (64, 64))
    files = [saved(clear, "PNG"), saved(clear, "WEBP", lossless=True), saved(grey, "PNG")]
    for file in (*files, saved(palette, "PNG", transparency=0)):
        assert set(SIGHT.read(file).pixels) == {255}
    half = saved(Image.new("RGBA", (64, 64), (0, 0, 0, 128)), "PNG")
    assert set(SIGHT.read(half).pixels) == {127}


def test_strips_lead_to_the_same_bytes() -> None:
    file = photo(700, 1100)
    width, height = SIGHT.size(700, 1100)
    whole = Image.open(BytesIO(file)).convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
    assert SIGHT.read(file).pixels == whole.tobytes()


def _turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held on its side
    return exif


def test_the_same_pixels_have_one_key_and_others_another() -> None:
    data = photo(64, 40)
    assert SIGHT.read(data) == SIGHT.read(b64encode(data).decode())
    keys = {
        SIGHT.read(each).key for each in (data, photo(64, 40, 1), photo(40, 64), saved(Image.new("L", (9, 9)), "PNG"))
    }
    assert len(keys) == 4


async def test_a_conversation_has_so_many_pictures() -> None:
    many = Message("user", "", pictures=(Attached(0, photo(40, 40)),) * (MOST_PICTURES + 1))
    with pytest.raises(BadRequest, match=f"at most {MOST_PICTURES} pictures"):
        await SIGHT.prepare([many], lambda size: None)
    sizes: list[int] = []
    found = await SIGHT.prepare([replace(many, pictures=many.pictures[1:])], sizes.append)
    assert len(found) == MOST_PICTURES
    assert sizes == [sum(len(each.pixels) for each in found)]


async def test_nothing_is_decoded_for_which_there_is_no_room() -> None:
    """What would fail to be decoded is not even tried."""

    def full(size: int) -> None:
        raise QueueFull(f"no room for {size} bytes")

    asked = Message("user", "", pictures=(Attached(0, photo(80, 80)[:-200]),))
    with pytest.raises(QueueFull, match="no room for"):
        await SIGHT.prepare([asked], full)
    with pytest.raises(BadRequest, match="it is broken"):
        await SIGHT.prepare([asked], lambda size: None)


def test_each_part_of_a_picture_has_a_token() -> None:
    first, second = SIGHT.read(photo(40, 40)), SIGHT.read(photo(64, 40))
    ids, found = placed((7, 5, 8, 5), (first, second), 5)
    assert ids == (7, *[5] * first.tokens, 8, *[5] * second.tokens)
    assert [each.offset for each in found] == [1, 2 + first.tokens]


def test_a_template_that_loses_pictures_is_refused() -> None:
    picture = SIGHT.read(photo(40, 40))
    with pytest.raises(BadRequest, match="does not say where the pictures are"):
        placed((7,), (picture,), 5)
    with pytest.raises(BadRequest, match="the text of the request has a word that stands for a picture"):
        placed((5, 7, 5), (picture,), 5)


TOOL = Tool("f", "", {"type": "object", "properties": {"a": {"description": "<pad>"}}})
MARKED: dict[str, ChatRequest] = {
    "messages.1.content": chat(Message("user", "a"), Message("user", "b <pad>")),
    "messages.0.reasoning_content": chat(Message("assistant", "", "<pad>")),
    "messages.0.tool_calls": chat(Message("assistant", "", "", (ToolCall("1", "<pad>", "{}"),))),
    "tools.0.function": replace(chat(Message("user", "")), tool_use=ToolUse((TOOL,))),
    "chat_template_kwargs": replace(chat(Message("user", "")), template={"date": "<pad>"}),
}


@pytest.mark.parametrize("where", MARKED)
def test_a_text_that_looks_like_a_picture_is_refused(where: str) -> None:
    with pytest.raises(BadRequest, match=f"{where}: the text has <pad>, which stands for a picture"):
        refuse_marks(MARKED[where], "<pad>")
    refuse_marks(MARKED[where], "<other>")


def test_templates_get_text_and_pictures_in_order() -> None:
    one, two = Attached(0, b"1"), Attached(3, b"2")
    (turn,) = turns([Message("user", "abcd", pictures=(one, two))], HERMES, "")
    assert turn["content"] == [
        {"type": "image"},
        {"type": "text", "text": "abc"},
        {"type": "image"},
        {"type": "text", "text": "d"},
    ]


def test_messages_that_become_one_keep_their_pictures_in_place() -> None:
    said = [
        Message("user", "ab", pictures=(Attached(1, b"1"),)),
        Message("user", "", pictures=(Attached(0, b"2"),)),
        Message("user", "cd", pictures=(Attached(2, b"3"),)),
    ]
    (found,) = joined(said, lambda before, message: True, "\n\n")
    assert found.content == "ab\n\ncd"
    assert [(each.at, each.data) for each in found.pictures] == [(1, b"1"), (4, b"2"), (6, b"3")]


def test_what_a_model_says_of_its_pictures_is_kept(tmp_path: Path) -> None:
    folder = write_seeing(tmp_path / "model")
    spec, file = read_spec(folder), folder / "preprocessor_config.json"
    sight = read_sight(folder, spec)
    assert isinstance(sight, Sight)
    assert (sight.eyes, sight.least, sight.most) == (spec.eyes, LEAST, MOST)

    given = json.loads(file.read_text())
    file.write_text(json.dumps(given | {"image_mean": [0.4, 0.5, 0.6]}))
    assert "prepared otherwise than here" in str(read_sight(folder, spec))
    file.unlink()
    usual = read_sight(folder, spec)
    assert isinstance(usual, Sight)
    assert usual.most == MOST_PARTS * 64


def test_a_model_without_eyes_says_so(tmp_path: Path) -> None:
    folder = write_seeing(tmp_path / "model")
    spec = replace(read_spec(folder), eyes=None)
    config = json.loads((folder / "config.json").read_text())
    assert "has no vision tower that runs here: send text alone" in str(read_sight(folder, spec))
    for wrapper in ("qwen3_5", "qwen3_5_moe", "gemma4"):
        (folder / "config.json").write_text(json.dumps({"model_type": wrapper, "vision_config": {"depth": 1}}))
        assert "those of its family come next" in str(read_sight(folder, spec))
    (folder / "config.json").write_text(json.dumps(config["text_config"]))
    assert "has no vision tower that runs here" in str(read_sight(folder, spec))  # as of a GGUF file
    blind = read_sight(folder, replace(spec, family="qwen3"))
    assert isinstance(blind, Sentence)
    assert "sees no pictures; send text alone" in str(blind)
