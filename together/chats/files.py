"""Files that go with questions: what they are, by their bytes and not by their names."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from together.chats.pdf_process import MOST_TEXT as MOST_TEXT_FILE
from together.chats.pdfs import PdfTexts, is_pdf
from together.chats.records import KeptFile, new_id
from together.errors import BadRequest
from together.text import pictures
from together.text.tokenizer import TextModel

MOST_FILE = pictures.MOST_FILE  # bytes
MOST_FILE_NAME = 200
PICTURE_KINDS = frozenset(f"image/{name.lower()}" for name in pictures.FORMATS)
_TEXT = "text/plain"
_MARKS = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))


async def kept_file(name: str, data: bytes, model: TextModel | None, pdfs: PdfTexts) -> tuple[KeptFile, bytes]:
    """A file as it is kept, its text counted in tokens of `model`; of a PDF that is its text.

    Raises BadRequest as `read_file` and `PdfTexts.text` do, QueueFull where others are being read.
    """
    if is_pdf(data):
        data = (await pdfs.text(data)).encode()
    file, content = await asyncio.to_thread(read_file, name, data)
    if model is None or file.kind != _TEXT:
        return file, content
    return replace(file, tokens=len(await model.encode_aside(content.decode()))), content


def read_file(name: str, data: bytes) -> tuple[KeptFile, bytes]:
    """What a file is by its bytes, and what is kept of it. Raises BadRequest for what is neither text nor picture."""
    name = " ".join("".join(letter if letter.isprintable() else " " for letter in name).split())[:MOST_FILE_NAME]
    text = text_of(data)
    if text is None:
        return KeptFile(new_id(), name or "picture", _picture_kind(data), len(data)), data
    content = text.encode()
    return KeptFile(new_id(), name or "text", _TEXT, len(content)), content


def text_of(data: bytes) -> str | None:
    """The text of a file, with plain line ends; None for what is no text. Raises BadRequest where it is too long."""
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError:
        return None
    if "\0" in text:
        return None
    if len(text.encode()) > MOST_TEXT_FILE:  # as it is kept, so that an export of it can be read again
        raise BadRequest(
            "a text file may have at most {most} MB; send a part of it", "file", most=MOST_TEXT_FILE // 2**20
        )
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _picture_kind(data: bytes) -> str:
    try:
        return pictures.kind_of(data)
    except BadRequest as error:
        text = "this file is neither text in UTF-8, nor PDF, nor a picture that can be read ({reason}); send its text"
        raise BadRequest(text, "file", reason=error.sentence) from None
