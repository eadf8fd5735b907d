"""PDF files of a few hundred bytes, written by hand: a content stream for each page. Knows no test."""

from __future__ import annotations

import zlib
from io import BytesIO


def pdf(*texts: str) -> bytes:
    """A file with one line of text on each page; an empty one has none."""
    return pdf_of(*(f"BT /F1 12 Tf 72 720 Td ({text}) Tj ET".encode("latin-1") if text else b"" for text in texts))


def pdf_of(*contents: bytes, more: dict[str, bytes] | None = None, packed: bool = False) -> bytes:
    """A page for each content stream; `more` are forms by name, each a content stream that may draw others.

    `packed`: the streams of pages are compressed.
    """
    forms = more or {}
    first = 4 + 2 * len(contents)
    names = " ".join(f"/{name} {first + place} 0 R" for place, name in enumerate(forms))
    shared = f"/Resources << /Font << /F1 3 0 R >> /XObject << {names} >> >>"
    kids = " ".join(f"{4 + 2 * page} 0 R" for page in range(len(contents)))
    bodies = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(contents)} >>".encode(),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for page, content in enumerate(contents):
        holds = f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] {shared} /Contents {5 + 2 * page} 0 R >>"
        stream = _stream(zlib.compress(content), "/Filter /FlateDecode") if packed else _stream(content)
        bodies += [holds.encode(), stream]
    bodies += [_stream(form, f"/Type /XObject /Subtype /Form /BBox [0 0 9 9] {shared}") for form in forms.values()]
    return _file(bodies)


def _stream(content: bytes, entries: str = "") -> bytes:
    return f"<< /Length {len(content)} {entries} >>\nstream\n".encode() + content + b"\nendstream"


def _file(bodies: list[bytes]) -> bytes:
    made, places = bytearray(b"%PDF-1.7\n"), []
    for number, body in enumerate(bodies, 1):
        places.append(len(made))
        made += f"{number} 0 obj\n".encode() + body + b"\nendobj\n"
    start = len(made)
    made += f"xref\n0 {len(bodies) + 1}\n0000000000 65535 f \n".encode()
    made += b"".join(b"%010d 00000 n \n" % place for place in places)
    made += f"trailer\n<< /Size {len(bodies) + 1} /Root 1 0 R >>\nstartxref\n{start}\n%%EOF\n".encode()
    return bytes(made)


def locked(data: bytes, user: str, owner: str = "owner") -> bytes:
    """The file, encrypted; with an empty `user` everybody may read it."""
    from pypdf import PdfReader, PdfWriter

    writer = PdfWriter(clone_from=PdfReader(BytesIO(data)))
    writer.encrypt(user, owner, algorithm="AES-256")
    made = BytesIO()
    writer.write(made)
    return made.getvalue()
