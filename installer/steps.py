"""What an installation says: a line for each step on stderr, and one sentence where it cannot go on."""

import shutil
import subprocess
import sys
import time
from typing import IO, Dict, Optional, Sequence


class Refused(Exception):
    """Something that the person has to change. The message is one sentence: what is wrong and what to do."""


def say(sentence: str) -> None:
    sys.stdout.flush()
    sys.stderr.write(f"together: {sentence}\n")
    sys.stderr.flush()


class Step:
    """One line about something that takes its time: on a terminal the seconds run at its end."""

    def __init__(self, words: str) -> None:
        self._words = "together: " + words
        self._begin = time.monotonic()
        self._live = sys.stderr.isatty()

    def __enter__(self) -> "Step":
        sys.stdout.flush()
        self._write(self._words + ("" if self._live else "\n"))
        return self

    def tick(self) -> None:
        """To be called about once a second."""
        if self._live:
            room = shutil.get_terminal_size().columns - len(self._seconds()) - 1
            self._write("\r" + self._words[:room] + self._seconds())  # a line that wraps cannot be written again

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._write("\r" + self._words + self._seconds() + "\n")

    def _seconds(self) -> str:
        return f" … {time.monotonic() - self._begin:.0f} s"

    def _write(self, text: str) -> None:
        sys.stderr.write(text)
        sys.stderr.flush()


def run_step(
    words: str, command: Sequence[str], output: IO[bytes], environment: Optional[Dict[str, str]] = None
) -> int:
    """Run a command, all that it says in `output`; its exit status."""
    with Step(words) as step, subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=environment
    ) as process:
        while True:
            status = _wait_a_second(process)
            if status is not None:
                return status
            step.tick()


def _wait_a_second(process: "subprocess.Popen[bytes]") -> Optional[int]:
    try:
        return process.wait(1)
    except subprocess.TimeoutExpired:
        return None


def last_words(text: str) -> str:
    """The last line in which a program says what went wrong."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    complaints = [line for line in lines if line.lower().startswith("error:")]
    return (complaints or lines or ["it said nothing"])[-1]
