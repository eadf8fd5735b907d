"""A process that compiles and renders chat templates in Jinja's sandbox: `python -m together.text.template_process`.

Templates are strangers' code. They see plain strings, numbers, lists and dicts, can neither change those nor reach
Python, and spend their time and memory here: the parent (`rendering.py`) watches and kills. This process imports Jinja
and the standard library alone, so it starts in a fifth of a second and takes 20 MB.

Both directions carry one JSON object per line, in UTF-8 that allows lone surrogates:
    {"compile": source, "within": seconds}                    → {"wants_tools": bool}
    {"render": digest, "variables": {…}, "within": seconds}   → {"text": …}
Either may fail: {"limit": kind} for a key of `rendering.TOOK`, or {"refusal": reason}.
The process leaves when its input ends.
"""

from __future__ import annotations

import faulthandler
import hashlib
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from queue import SimpleQueue
from typing import Any, BinaryIO, NoReturn

from jinja2 import Template, TemplateSyntaxError, nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

MEMORY = 280 * 2**20  # bytes that this process may grow by; compiling 400 kB of macros takes 240 MiB
MOST_TEXT = 2**23  # letters of a rendered conversation; a request's body is half as long at most
MOST_REASON = 200  # letters of a template's complaint
SLACK = 2.0  # seconds past a request's limit; then this process ends by itself, because its parent is gone

READY = {"ready": True}
Reply = dict[str, object]


class Templates:
    """Compiled templates by their source's digest."""

    def __init__(self) -> None:
        self._compiled: dict[str, Template] = {}

    def answer(self, request: Mapping[str, Any]) -> Reply:
        """The reply to one request."""
        try:
            if "compile" in request:
                return self._compile(request["compile"])
            return {"text": _render(self._compiled[request["render"]], request["variables"])}
        except MemoryError:
            return {"limit": "memory"}
        except RecursionError:
            return {"limit": "depth"}
        except _TooLong:
            return {"limit": "length"}
        except TemplateSyntaxError as error:
            return _refusal(f"line {error.lineno}: {error.message}")
        except SyntaxError as error:  # Python's own limits on the compiled template, as deep nesting
            return _refusal(error.msg)
        except Exception as error:  # the template's complaint, the sandbox's, or any error of a running template
            return _refusal(str(error) or type(error).__name__)

    def _compile(self, source: str) -> Reply:
        environment = _Environment()
        self._compiled[digest(source)] = environment.from_string(source)
        return {"wants_tools": "tools" in environment.undeclared}


def digest(source: str) -> str:
    """A template's name in requests."""
    return hashlib.sha256(source.encode("utf-8", "surrogatepass")).hexdigest()


class _TooLong(Exception):
    pass


def _render(template: Template, variables: Mapping[str, Any]) -> str:
    """Render piece by piece, so that an endless text ends early."""
    pieces, length = [], 0
    for piece in template.generate(variables):
        pieces.append(piece)
        length += len(piece)
        if length > MOST_TEXT:
            raise _TooLong
    return "".join(pieces)


def _refusal(reason: str) -> Reply:
    return {"refusal": reason if len(reason) <= MOST_REASON else reason[:MOST_REASON] + "…"}


# --- Jinja as model templates expect it, by the conventions of transformers -------------------------------------------


class _Generator(CodeGenerator):
    """Collects the template's undeclared names, as `jinja2.meta` does, while it compiles.

    A second pass takes a second for a large template.
    """

    def enter_frame(self, frame: Frame) -> None:
        super().enter_frame(frame)
        assert isinstance(self.environment, _Environment)
        resolved = (name for action, name in frame.symbols.loads.values() if action == "resolve")
        self.environment.undeclared.update(name for name in resolved if name and name not in self.environment.globals)


class _GenerationBlock(Extension):
    """Ignores `{% generation %}…{% endgeneration %}`, which mark the assistant's words for training."""

    tags = {"generation"}  # noqa: RUF012  # what Jinja declares

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox of one template."""

    code_generator_class = _Generator

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, loopcontrols])
        self.undeclared: set[str] = set()
        self.filters["tojson"] = _to_json
        self.globals["raise_exception"] = _complain
        self.globals["strftime_now"] = _now


def _to_json(value: object, indent: int | None = None, ensure_ascii: bool = False, **options: Any) -> str:
    """Replaces Jinja's filter, which escapes HTML characters; no model was trained on those."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _complain(message: str) -> NoReturn:
    raise TemplateError(message)


def _now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


# --- the process ------------------------------------------------------------------------------------------------------


def packed(message: Mapping[str, object]) -> bytes:
    """One line. Raises ValueError, TypeError or RecursionError for what is not JSON."""
    return json.dumps(message, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"


def unpacked(line: bytes) -> dict[str, Any]:
    """What `packed` made the line of. Raises ValueError for anything else."""
    found = json.loads(line.decode("utf-8", "surrogatepass"))
    if not isinstance(found, dict):
        raise ValueError("not an object")
    return found


def limit_memory(more: int = MEMORY) -> None:
    """Make growth beyond `more` bytes a MemoryError. Only Linux enforces such a limit; elsewhere the parent watches."""
    if sys.platform == "linux":
        import resource

        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + more, size + more))


def serve(requests: SimpleQueue[bytes], output: BinaryIO, answer: Callable[[Mapping[str, Any]], Reply]) -> NoReturn:
    """Answer requests in order until the process ends."""
    with Path(os.devnull).open("w") as nowhere:
        output.write(packed(READY))
        output.flush()
        while True:
            request = unpacked(requests.get())
            # A C thread watches: some operations, as (9 ** 9) ** 9 ** 9, let no other Python thread run.
            faulthandler.dump_traceback_later(request["within"] + SLACK, exit=True, file=nowhere)
            line = packed(answer(request))
            faulthandler.cancel_dump_traceback_later()
            output.write(line)
            output.flush()


def _listen(requests: SimpleQueue[bytes]) -> None:
    """Queue requests until the parent is gone or closes the pipe."""
    while line := sys.stdin.buffer.readline():
        requests.put(line)
    os._exit(0)


def main() -> NoReturn:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
    limit_memory()
    requests: SimpleQueue[bytes] = SimpleQueue()
    threading.Thread(target=_listen, args=(requests,), daemon=True).start()
    try:
        serve(requests, sys.stdout.buffer, Templates().answer)
    except (OSError, MemoryError):  # the parent is gone, or sees this process end
        os._exit(1)


if __name__ == "__main__":
    main()
