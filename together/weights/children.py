"""Work on weights in a child process: it gets one order, tells how far it is, and its errors come back as they are."""

from __future__ import annotations

import asyncio
import logging
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

from pydantic_core import to_json

from together.errors import BadInput, BrokenModel, LoadFailed, TogetherError, UnsupportedModel
from together.processes import end, lines, spawn
from together.sentences import Sentence, say, verbatim
from together.wording import reason_of

log = logging.getLogger(__name__)
# By exit code, and what each stands for: of several the first.
_KINDS: dict[int, type[TogetherError]] = {2: UnsupportedModel, 3: BrokenModel, 4: LoadFailed}
_STAND_FOR: tuple[tuple[type[TogetherError], int], ...] = ((UnsupportedModel, 2), (BadInput, 3), (TogetherError, 4))
_MOST = 300  # characters of what others said

Ended = Callable[[int, str | Sentence], LoadFailed]  # gets the exit code, and the last words


async def run_child(module: str, order: object, tell: Callable[[int], None], ended: Ended) -> None:
    """Give `order` to a child that runs `module`, and `tell` what it prints: how many bytes are done.

    `ended` makes the error of one that ended without saying why. The child ends when this is cancelled. Raises
    BrokenModel, UnsupportedModel or LoadFailed, as the child did.
    """
    process = await spawn(module)
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        process.stdin.write(to_json(order) + b"\n")
        said = asyncio.create_task(_said(process.stderr))
        async for line in lines(process.stdout):
            tell(int(line))
        last, code = await said, await process.wait()
    finally:
        await asyncio.shield(end(process, 0))
    if code in _KINDS:
        raise _KINDS[code](verbatim(last))
    if code:
        raise ended(code, last[:_MOST] or say("said_nothing"))


async def _said(stream: asyncio.StreamReader) -> str:
    """The last line; the log has all of them."""
    last = ""
    async for line in lines(stream):
        last = line.decode(errors="replace").strip() or last
        log.info("%s", last)
    return last


# --- in the child -----------------------------------------------------------------------------------------------------


def do(work: Callable[[], object], what: Sentence) -> None:
    """Do the child's work on `what`. An error's text is the last line on stderr then, and the exit code is its kind."""
    try:
        work()
    except TogetherError as error:
        _leave(error)
    except OSError as error:
        said = "{what} cannot be written ({reason}); check the rights and the disk"
        _leave(LoadFailed(said, what=what, reason=reason_of(error)))
    except Exception as error:  # the outermost edge: the parent has the traceback in its log
        traceback.print_exc()
        _leave(
            LoadFailed(
                "{what} are such that this program failed over them ({kind}: {reason}), which is a bug of it; the log "
                "has more; load another version of the model",
                what=what,
                kind=type(error).__name__,
                reason=" ".join(str(error).split())[:_MOST],
            )
        )


def _leave(error: TogetherError) -> NoReturn:
    print(" ".join(str(error).split()), file=sys.stderr, flush=True)
    sys.exit(next(code for kind, code in _STAND_FOR if isinstance(error, kind)))
