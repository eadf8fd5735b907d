"""The text of a PDF, read by a child process within limits of time and memory."""

from __future__ import annotations

import asyncio
import json
import logging
from contextlib import suppress

import psutil

from together.chats.pdf_process import LONGEST, MEMORY, MOST_PAGES, MOST_TEXT
from together.errors import BadRequest, NotServing, QueueFull
from together.processes import command, surroundings

log = logging.getLogger(__name__)

BEGIN, END = b"%PDF-", b"%%EOF"
NEAR = 1024  # bytes at either end of a file in which these stand, as readers have it
AT_ONCE = 2  # children
LONGEST_WAIT = 60.0  # seconds for one of them
LOOK_EVERY = 0.1  # seconds

WHY = {
    "encrypted": "this PDF asks for a password; save it without one, then add it again",
    "empty": "this PDF has no text, its pages are pictures; read it with a program that makes text of scans (OCR), or "
    "add its text instead",
    "broken": "this PDF is broken, or not whole; open it in another program and save it anew, or add its text instead",
    "page": "page {page} of this PDF cannot be read; save the file anew without it, or add its text instead",
    "pages": f"a PDF may have at most {MOST_PAGES} pages; add a part of it",
    "length": f"this PDF has more than {MOST_TEXT // 2**20} MB of text; add a part of it",
    "memory": f"this PDF takes more than {MEMORY // 2**20} MB of memory to read; add a part of it, or its text instead",
    "time": f"this PDF takes more than {LONGEST:.0f} s to read; add a part of it, or its text instead",
}


def is_pdf(data: bytes) -> bool:
    """Something may come before the first line of one; a text that has it as an example does not end as one."""
    start, end = data[:NEAR], data[-NEAR:]
    return BEGIN in start and (start.lstrip().startswith(BEGIN) or END in end)


class PdfTexts:
    """Reads PDFs for one event loop."""

    def __init__(self) -> None:
        self._places = asyncio.Semaphore(AT_ONCE)

    async def text(self, data: bytes) -> str:
        """Raises BadRequest for a file without text that can be read, QueueFull where others are being read."""
        try:
            async with asyncio.timeout(LONGEST_WAIT):
                await self._places.acquire()
        except TimeoutError:
            raise QueueFull("other PDFs are being read; try again in a moment") from None
        try:
            return await _read(data)
        finally:
            self._places.release()


async def _read(data: bytes) -> str:
    # One arena: each further one takes 64 MB of the address space that the child limits itself to.
    around = surroundings({"MALLOC_ARENA_MAX": "1"})
    try:
        child = await asyncio.create_subprocess_exec(
            *command("together.chats.pdf_process"), stderr=asyncio.subprocess.DEVNULL, **around
        )
    except OSError as error:
        text = "the process that reads PDFs cannot be started ({reason}); try again in a moment"
        raise NotServing(text, reason=str(error)) from error
    talk = asyncio.create_task(child.communicate(data))
    try:
        fault = await _watched(child.pid, talk)
        if fault:
            raise _refusal(fault)
        return _text_in((await talk)[0])
    finally:
        talk.cancel()
        with suppress(ProcessLookupError):
            child.kill()
        await child.wait()


async def _watched(pid: int, talk: asyncio.Task[tuple[bytes, bytes]]) -> str:
    """The limit that the child went beyond; empty where it ended before. Only Linux holds it to its memory itself."""
    until = asyncio.get_running_loop().time() + LONGEST
    while not (await asyncio.wait([talk], timeout=LOOK_EVERY))[0]:
        if asyncio.get_running_loop().time() > until:
            return "time"
        with suppress(psutil.Error):  # it ends right now
            if psutil.Process(pid).memory_info().rss > 2 * MEMORY:
                return "memory"
    return ""


def _text_in(reply: bytes) -> str:
    try:
        found = json.loads(reply)
    except ValueError:  # nothing: the library, or the system, ended it
        log.warning("the process that reads PDFs ended without a reply")
        found = {"fault": "broken"}
    if "text" in found:
        return str(found["text"])
    raise _refusal(str(found["fault"]), int(found.get("page", 0)))


def _refusal(fault: str, page: int = 0) -> BadRequest:
    return BadRequest(WHY[fault], "file", **({"page": page} if page else {}))
