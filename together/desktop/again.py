"""A program of this machine that begins anew in its own place, with a newer version of itself.

It keeps its process, its terminal, its environment and whoever watches over it. The order is a file in the home folder,
at which apps and nodes look each second: a node has nobody else on its machine to tell it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from together.checkout import ROOT
from together.jsonfile import recall_json, write_json

log = logging.getLogger(__name__)

LOOK_EVERY = 1.0  # seconds
AGAIN = "--again"  # for `up`: what served before is loaded


@dataclass(frozen=True, slots=True)
class BeginAnew:
    """What runs from that checkout begins anew; `at` is a Unix time and tells orders apart."""

    checkout: str
    at: float


def order_anew(home: Path) -> None:
    """To all apps and nodes of this home that run from this checkout. Raises OSError."""
    write_json(_file(home), BeginAnew(str(ROOT), time.time()))


async def until_ordered(home: Path) -> None:
    """Returns once such an order comes."""
    before = recall_json(_file(home), BeginAnew)
    while True:
        await asyncio.sleep(LOOK_EVERY)
        now = recall_json(_file(home), BeginAnew)
        if now is not None and now != before and now.checkout == str(ROOT):
            return


def _file(home: Path) -> Path:
    return home / "anew.json"


def begin_anew(more: Sequence[str] = ()) -> None:
    """This command line again, with `more` options, in this process; does not return.

    Windows cannot replace a process: there this one waits for the new one, and ends with it.
    """
    given = [word for word in sys.argv[1:] if word not in more]
    command = [sys.executable, "-m", "together", *given, *more]
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    if os.name == "posix":
        os.execv(command[0], command)
    os._exit(subprocess.call(command))
