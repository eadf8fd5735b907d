"""A process that reads the text of one PDF: `python -m together.chats.pdf_process`, the file on its standard input.

Files are strangers' data, and the library that reads them is large: it spends its time and memory here, where the head
(`pdfs.py`) watches and kills. The reply is one JSON object: {"text": …}, or {"fault": kind} for a key of `pdfs.WHY`,
with the "page" where there is one. Knows nothing of conversations.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import sys
from io import BytesIO
from pathlib import Path

from together.text.template_process import limit_memory

MEMORY = 512 * 2**20  # bytes that this process may grow by
LONGEST = 60.0  # seconds
SLACK = 5.0  # seconds past that; then this process ends by itself, because its parent is gone
MOST_PAGES = 2000
MOST_TEXT = 2 * 2**20  # bytes: more than the largest contexts hold

Reply = dict[str, object]


class _Refused(Exception):
    """`args` are a key of `pdfs.WHY` and a page, 0 for none."""


def reply_to(data: bytes) -> Reply:
    try:
        return {"text": _text(data)}
    except _Refused as refused:
        kind, page = refused.args
        return {"fault": kind, "page": page}
    except MemoryError:
        return {"fault": "memory"}
    except Exception:  # of a broken file the library may raise anything
        return {"fault": "broken"}


def _text(data: bytes) -> str:
    """The pages' texts, each under its number where there are several."""
    from pypdf import PasswordType, PdfReader

    reader = PdfReader(BytesIO(data))
    if reader.is_encrypted and reader.decrypt("") == PasswordType.NOT_DECRYPTED:
        raise _Refused("encrypted", 0)
    count = len(reader.pages)
    if count > MOST_PAGES:
        raise _Refused("pages", 0)
    texts: list[str] = []
    left = MOST_TEXT
    for number in range(count):
        try:
            text = _clean(reader.pages[number].extract_text())
        except (MemoryError, RecursionError):
            raise
        except Exception:  # a page that is left out would be missed by nobody
            raise _Refused("page", number + 1) from None
        texts.append(text)
        left -= len(text.encode())
        if left < 0:
            raise _Refused("length", 0)
    if not any(texts):
        raise _Refused("empty", 0)
    if count == 1:
        return texts[0]
    return "\n\n".join(f"[page {number}]\n{text or '(no text)'}" for number, text in enumerate(texts, 1))


def _clean(text: str) -> str:
    """Text that is kept and read again as it is: no half letters, and no zeros, which only other files have."""
    text = text.encode("utf-8", "replace").decode().replace("\0", "")
    return text.replace("\r\n", "\n").replace("\r", "\n").strip()


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
    with Path(os.devnull).open("w") as nowhere:
        faulthandler.dump_traceback_later(LONGEST + SLACK, exit=True, file=nowhere)
        limit_memory(MEMORY)
        data = sys.stdin.buffer.read()
        sys.stdout.buffer.write(json.dumps(reply_to(data)).encode())
        sys.stdout.buffer.flush()
        faulthandler.cancel_dump_traceback_later()


if __name__ == "__main__":
    main()
