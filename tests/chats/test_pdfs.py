"""Texts of PDFs, read by the real process: ours, locked, broken and hostile ones."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import pytest

from tests.support.pdfs import locked, pdf, pdf_of
from together.chats import pdf_process, pdfs
from together.chats.files import kept_file
from together.chats.pdf_process import reply_to
from together.chats.pdfs import PdfTexts, is_pdf
from together.errors import BadRequest

SAYS = b"BT /F1 12 Tf 72 720 Td (word) Tj ET\n"


async def test_the_text_of_a_pdf_is_kept_as_a_text_file() -> None:
    file, content = await kept_file("report.pdf", pdf("the code is 42", "", "the end"), None, PdfTexts())
    assert content.decode() == "[page 1]\nthe code is 42\n\n[page 2]\n(no text)\n\n[page 3]\nthe end"
    assert (file.name, file.kind, file.size) == ("report.pdf", "text/plain", len(content))
    with pytest.raises(BadRequest, match="asks for a password"):
        await PdfTexts().text(locked(pdf("secret"), "password"))


def test_what_everybody_may_read_is_read() -> None:
    assert reply_to(b"\n\n" + pdf("one page"))["text"] == "one page"
    assert reply_to(locked(pdf("all may read this"), ""))["text"] == "all may read this"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (locked(pdf("secret"), "password"), "asks for a password"),
        (pdf("", ""), "has no text"),
        (pdf_of(), "has no text"),
        (b"%PDF-1.7\n" + bytes(range(256)) * 40, "is broken"),
        (pdf("half of it")[:200], "is broken"),
        (pdf_of(b"0 " * 40_000_000, packed=True), "page 1 of this PDF cannot be read|takes more than"),
    ],
    ids=["locked", "no text", "no pages", "rubbish", "cut", "bomb"],
)
def test_what_cannot_be_read_is_named(data: bytes, said: str) -> None:
    fault = reply_to(data)
    assert re.search(said, pdfs.WHY[str(fault["fault"])].format(**fault))


async def test_a_pdf_that_takes_for_ever_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each form draws the next one ten times."""
    monkeypatch.setattr(pdfs, "LONGEST", 2.0)
    names = [f"X{number}" for number in range(12)]
    draws = {name: f"/{after} Do\n".encode() * 10 for name, after in pairwise(names)}
    with pytest.raises(BadRequest, match="to read; add a part of it"):
        await PdfTexts().text(pdf_of(b"/X0 Do", more=draws | {names[-1]: SAYS}))


def test_pages_and_letters_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pdf_process, "MOST_PAGES", 2)
    assert reply_to(pdf("a", "b", "c"))["fault"] == "pages"
    monkeypatch.setattr(pdf_process, "MOST_TEXT", 7)
    assert reply_to(pdf("1234567", ""))["text"]
    assert reply_to(pdf("1234", "5678"))["fault"] == "length"


def test_every_fault_has_its_sentence() -> None:
    named = set(re.findall(r'(?:_Refused\(|"fault": |return )"(\w+)"', Path(pdf_process.__file__).read_text()))
    assert named | {"time"} == set(pdfs.WHY)


def test_a_pdf_is_known_by_its_bytes() -> None:
    assert is_pdf(pdf("x"))
    assert is_pdf(b"mail header\n" + pdf("x"))
    assert not is_pdf(b"a text about %PDF-1.7 and %%EOFs" + b"." * 2000)
