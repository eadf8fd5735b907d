"""Writes the small files that a GGUF file's metadata make, in a child process: it takes seconds, and holds the GIL.

`python -m together.weights.gguf_words` reads an Order as a line on its input, and leaves when its input closes.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from together.errors import LoadFailed
from together.jsonfile import decode_json
from together.models.folder import broken
from together.models.gguf.header import GgufHeader, parse_header
from together.models.gguf.words import word_files
from together.processes import claim_stdout, leave_with_parent
from together.sentences import Sentence, template
from together.weights.children import do, run_child


@dataclass(frozen=True, slots=True)
class WordOrder:
    """Write the words of a GGUF file with `size` bytes, of which `file` holds at least the header, into `folder`.

    `name` is what errors call the model.
    """

    file: str
    size: int
    folder: str
    name: str = ""


async def write_words(file: Path, size: int, folder: Path, name: str = "") -> None:
    """Write the files of `word_files` into `folder`; `size` is that of the whole GGUF file.

    The child ends when this is cancelled. Raises BrokenModel, UnsupportedModel or LoadFailed.
    """

    def ended(code: int, said: str | Sentence) -> LoadFailed:
        return LoadFailed(
            "the process that reads the words of {file} ended with code {code} ({said}); try again, with less running "
            "beside it",
            file=str(file),
            code=code,
            said=said,
        )

    await run_child("together.weights.gguf_words", WordOrder(str(file), size, str(folder), name), _nothing, ended)


def _nothing(done: int) -> None:
    """Words are soon made: the child tells no progress."""


# --- in the child -----------------------------------------------------------------------------------------------------


def make_words(order: WordOrder) -> None:
    file = Path(order.file)
    for name, content in word_files(_header(file, order.size).metadata, order.name).items():
        target = Path(order.folder) / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)


def _header(file: Path, size: int) -> GgufHeader:
    """Of a file that may end with its header: zeros stand for what follows, and nothing of them may be part of it."""
    with file.open("rb") as stream:

        def source(start: int, stop: int) -> bytes:
            stream.seek(start)
            return stream.read(stop - start).ljust(stop - start, b"\0")

        header = parse_header(file, source, size)
    there = file.stat().st_size
    if header.size > there:
        raise broken(file, "it ends at byte {there}, within its header", there=there)
    return header


def main() -> None:
    claim_stdout()
    order = decode_json(sys.stdin.buffer.readline(), WordOrder)
    leave_with_parent(1)
    do(lambda: make_words(order), template("the words of {file}", file=order.file))


if __name__ == "__main__":
    main()
