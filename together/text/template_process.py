"""A process that compiles and renders chat templates in Jinja's sandbox: `python -m together.text.template_process`.

Templates are strangers' code. They see plain strings, numbers, lists and dicts, may neither change those nor reach
Python, and whatever time and memory they take, they take here: the parent (`rendering.py`) watches and kills. This
process imports Jinja and the standard library alone, so that it starts in a fifth of a second and takes 20 MB.

One JSON object per line each way, in UTF-8 that lets half a surrogate pair through. {"compile": source} is answered by
{"wants_tools": bool}, {"render": source's digest, "variables": {…}} by {"text": …}, and either by {"fault": kind,
"reason": …}; "within" is the seconds that a request may take. The process leaves when its input ends.
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
MOST_REASON = 200  # letters of what a template complains of
SLACK = 2.0  # seconds beyond what a request may take, after which this process gives up by itself: its parent is gone

READY = {"ready": True}
Reply = dict[str, object]


class Templates:
    """Compiled templates by their source's digest."""

    def __init__(self) -> None:
        self._compiled: dict[str, Template] = {}

    def answer(self, request: Mapping[str, Any]) -> Reply:
        """The reply to one request; a fault of the template's is a reply, too."""
        try:
            if "compile" in request:
                return self._compile(request["compile"])
            return {"text": _render(self._compiled[request["render"]], request["variables"])}
        except MemoryError:
            return {"fault": "memory", "reason": ""}
        except RecursionError:
            return {"fault": "depth", "reason": ""}
        except _TooLong:
            return {"fault": "length", "reason": ""}
        except TemplateSyntaxError as error:
            return {"fault": "syntax", "reason": _short(f"line {error.lineno}: {error.message}")}
        except SyntaxError as error:  # Python's own limits on what the template was made into, as deep nesting
            return {"fault": "syntax", "reason": _short(error.msg)}
        except Exception as error:  # its own complaint, the sandbox's, or plain nonsense of a template that runs
            return {"fault": "refused", "reason": _short(str(error) or type(error).__name__)}

    def _compile(self, source: str) -> Reply:
        environment = _Environment()
        self._compiled[digest(source)] = environment.from_string(source)
        return {"wants_tools": "tools" in environment.undeclared}


def digest(source: str) -> str:
    """The name of a template in requests."""
    return hashlib.sha256(source.encode("utf-8", "surrogatepass")).hexdigest()


class _TooLong(Exception):
    pass


def _render(template: Template, variables: Mapping[str, Any]) -> str:
    """Piece by piece, so that an endless text ends early."""
    pieces, length = [], 0
    for piece in template.generate(variables):
        pieces.append(piece)
        length += len(piece)
        if length > MOST_TEXT:
            raise _TooLong
    return "".join(pieces)


def _short(reason: str) -> str:
    return reason if len(reason) <= MOST_REASON else reason[:MOST_REASON] + "…"


# --- Jinja as model templates expect it, following the conventions of transformers ------------------------------------


class _Generator(CodeGenerator):
    """Notes the names that a template takes from its caller, as `jinja2.meta` does, in the pass that compiles it.

    A pass of its own costs a large template a second.
    """

    def enter_frame(self, frame: Frame) -> None:
        super().enter_frame(frame)
        assert isinstance(self.environment, _Environment)
        resolved = (name for action, name in frame.symbols.loads.values() if action == "resolve")
        self.environment.undeclared.update(name for name in resolved if name and name not in self.environment.globals)


class _GenerationBlock(Extension):
    """`{% generation %}…{% endgeneration %}` marks the assistant's words for training; here it is only its content."""

    tags = {"generation"}  # noqa: RUF012  # what Jinja declares

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Environment(ImmutableSandboxedEnvironment):
    """For one template."""

    code_generator_class = _Generator

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, loopcontrols])
        self.undeclared: set[str] = set()
        self.filters["tojson"] = _to_json
        self.globals["raise_exception"] = _complain
        self.globals["strftime_now"] = _now


def _to_json(value: object, indent: int | None = None, ensure_ascii: bool = False, **options: Any) -> str:
    """Jinja's own filter escapes HTML characters, which no model was trained on."""
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


def limit_memory() -> None:
    """Growth beyond MEMORY becomes a MemoryError. Linux alone keeps to such a limit; elsewhere the parent watches."""
    if sys.platform == "linux":
        import resource

        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))


def serve(requests: SimpleQueue[bytes], output: BinaryIO, answer: Callable[[Mapping[str, Any]], Reply]) -> NoReturn:
    """Answer in order, for ever."""
    with Path(os.devnull).open("w") as nowhere:
        output.write(packed(READY))
        output.flush()
        while True:
            request = unpacked(requests.get())
            # By a thread of C: some operations ((9 ** 9) ** 9 ** 9) let no other thread of Python run.
            faulthandler.dump_traceback_later(request["within"] + SLACK, exit=True, file=nowhere)
            line = packed(answer(request))
            faulthandler.cancel_dump_traceback_later()
            output.write(line)
            output.flush()


def _listen(requests: SimpleQueue[bytes]) -> None:
    """Requests, until the parent is gone or wants this process gone."""
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
    except (OSError, MemoryError):  # the parent is gone, or sees that this process is
        os._exit(1)


if __name__ == "__main__":
    main()
