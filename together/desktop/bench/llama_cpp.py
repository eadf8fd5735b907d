"""llama.cpp's own programs as a yardstick, run on a model of the same shape and read by the JSON that they print."""

from __future__ import annotations

import asyncio
import socket
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from shutil import which
from typing import TypeVar

from together.errors import BadSetting, TogetherError
from together.jsonfile import decode_json
from together.processes import end, lines

BENCH, BATCHED = "llama-bench", "llama-batched-bench"
SERVERS = ("ggml-rpc-server", "rpc-server")  # the newer name, and the older one
HOST = "127.0.0.1"
_STARTED_WITHIN = 30.0  # seconds
_LOOK_EVERY = 0.05
_ALL = "99"  # layers: more than any model has

Line = TypeVar("Line")


@dataclass(frozen=True, slots=True)
class BenchLine:
    """What is read of a test of llama-bench: so many tokens of a prompt or new ones, after `n_depth` others."""

    n_prompt: int
    n_gen: int
    n_depth: int
    n_threads: int
    avg_ns: int
    backends: str
    model_type: str
    build_commit: str

    @property
    def tok_s(self) -> float:
        return (self.n_prompt + self.n_gen) * 1e9 / self.avg_ns


@dataclass(frozen=True, slots=True)
class BatchedLine:
    """What is read of a test of llama-batched-bench: `pl` sequences at once, `pp` tokens of prompt, `tg` new ones."""

    pl: int
    pp: int
    tg: int
    n_threads: int
    speed_tg: float


@dataclass(frozen=True, slots=True)
class LlamaCpp:
    """Where its programs are, and how all of them compute. `servers`: RPC servers that hold the layers; 0 is none."""

    folder: Path
    model: Path
    threads: int
    servers: int = 0

    @property
    def name(self) -> str:
        return f"llama.cpp RPC, {self.servers} servers" if self.servers else "llama.cpp"

    @asynccontextmanager
    async def ready(self) -> AsyncIterator[LlamaRuns]:
        """With its servers, which end with the block. Raises TogetherError where one does not start."""
        async with AsyncExitStack() as stack:
            servers = [await stack.enter_async_context(self._server()) for _ in range(self.servers)]
            yield LlamaRuns(self, tuple(servers))

    def program(self, *names: str) -> Path:
        """The first of these that is there. Raises BadSetting."""
        found = (which(name, path=str(self.folder)) for name in names)
        if (path := next(filter(None, found), None)) is None:
            raise BadSetting(
                "{folder} has no program {name}; build llama.cpp with -DGGML_RPC=ON -DGGML_NATIVE=ON "
                "-DLLAMA_BUILD_TOOLS=ON and give the folder of its programs: --compare llama.cpp=FOLDER",
                folder=str(self.folder),
                name=names[0],
            )
        return Path(path)

    @asynccontextmanager
    async def _server(self) -> AsyncIterator[RpcServer]:
        port = _free_port()
        command = (str(self.program(*SERVERS)), "-H", HOST, "-p", str(port), "-t", str(self.threads))
        process = await _start(command, stdout=DEVNULL)
        server = RpcServer(process, port)
        following = asyncio.create_task(server.follow())
        try:
            await server.wait_until_it_listens(command)
            yield server
        finally:
            await end(process, 0)
            await following


@dataclass(slots=True)
class RpcServer:
    process: Process
    port: int
    said: str = ""  # its last line

    async def follow(self) -> None:
        """Read what it says: a pipe that is full would stop it."""
        assert self.process.stderr is not None
        async for line in lines(self.process.stderr):
            self.said = line.decode(errors="replace").strip() or self.said

    async def wait_until_it_listens(self, command: Sequence[str]) -> None:
        """Raises TogetherError where it ends, or is silent for too long."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _STARTED_WITHIN
        while not await _listens(self.port):
            if self.process.returncode is not None:
                raise _ended(command, self.process.returncode, self.said)
            if loop.time() > deadline:
                raise TogetherError(
                    "{program} does not listen after {seconds:g} s; run it yourself: {command}",
                    program=Path(command[0]).name,
                    seconds=_STARTED_WITHIN,
                    command=" ".join(command),
                )
            await asyncio.sleep(_LOOK_EVERY)


@dataclass(frozen=True, slots=True)
class LlamaRuns:
    """Its programs, whose servers run."""

    owner: LlamaCpp
    servers: tuple[RpcServer, ...]

    @property
    def pids(self) -> tuple[int, ...]:
        return tuple(server.process.pid for server in self.servers)

    async def bench(self, prompt: int, new: int, depth: int) -> BenchLine:
        """One test by llama-bench, after a warm-up of its own. Raises TogetherError."""
        asked = ("-p", str(prompt), "-n", str(new), "-d", str(depth), "-r", "1", "-o", "json")
        command = (str(self.owner.program(BENCH)), *self._common(), *asked)
        found = _decoded(command, await _output(command), list[BenchLine])
        same = [(line.n_prompt, line.n_gen, line.n_depth) == (prompt, new, depth) for line in found]
        if same != [True] or found[0].avg_ns <= 0:
            raise _unexpected(command, f"{len(found)} results, of which {sum(same)} are of what was asked")
        return found[0]

    async def batched(self, people: Sequence[int], prompt: int, new: int) -> list[BatchedLine]:
        """A test by llama-batched-bench for each number of people. Raises TogetherError."""
        counts = ",".join(map(str, people))
        asked = ("-npp", str(prompt), "-ntg", str(new), "-npl", counts, "--output-format", "jsonl")
        room = ("-c", str(max(people) * (prompt + new)))
        command = (str(self.owner.program(BATCHED)), *self._common(), *room, *asked)
        output = await _output(command)
        found = [_decoded(command, line, BatchedLine) for line in output.splitlines() if line.startswith(b"{")]
        wanted = [(count, prompt, new) for count in people]
        if [(line.pl, line.pp, line.tg) for line in found] != wanted or any(line.speed_tg <= 0 for line in found):
            raise _unexpected(command, f"{len(found)} results instead of {len(wanted)}, or of something else")
        return found

    def _common(self) -> tuple[str, ...]:
        layers = ("--rpc", ",".join(f"{HOST}:{server.port}" for server in self.servers), "-ngl", _ALL)
        return "-m", str(self.owner.model), "-t", str(self.owner.threads), *(layers if self.servers else ("-ngl", "0"))


def llama_folder(text: str) -> Path | None:
    """`llama.cpp=FOLDER` → the folder; None for other words. Raises BadSetting where it is none."""
    name, equals, folder = text.partition("=")
    if name != "llama.cpp":
        return None
    found = Path(folder).expanduser()
    if not equals or not folder or not found.is_dir():
        raise BadSetting(
            "{folder!r} is no folder; give the one of llama.cpp's programs: --compare llama.cpp=FOLDER", folder=folder
        )
    return found.resolve()


def yardstick(text: str) -> Path:
    """As `llama_folder`, where nothing else can be compared with. Raises BadSetting."""
    if (folder := llama_folder(text)) is None:
        raise BadSetting("cannot compare with {name!r}; give llama.cpp=FOLDER of its programs", name=text)
    return folder


# --- processes --------------------------------------------------------------------------------------------------------


async def _output(command: Sequence[str]) -> bytes:
    """What the program writes to its standard output. Raises TogetherError where it fails."""
    process = await _start(command, stdout=PIPE)
    try:
        output, said = await process.communicate()
    finally:
        await end(process, 0)
    assert process.returncode is not None, "it is waited for"
    if process.returncode != 0:
        raise _ended(command, process.returncode, _last_line(said))
    return output


async def _start(command: Sequence[str], stdout: int) -> Process:
    try:
        return await asyncio.create_subprocess_exec(*command, stdin=DEVNULL, stdout=stdout, stderr=PIPE)
    except OSError as error:
        raise TogetherError(
            "{program} does not start: {error}; build llama.cpp for this machine", program=command[0], error=str(error)
        ) from error


async def _listens(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection(HOST, port)
    except OSError:
        return False
    writer.close()
    return True


def _free_port() -> int:
    with socket.socket() as free:
        free.bind((HOST, 0))
        port: int = free.getsockname()[1]
        return port


def _last_line(said: bytes) -> str:
    found = [line.strip() for line in said.decode(errors="replace").splitlines()]
    return next(filter(None, reversed(found)), "")


def _decoded(command: Sequence[str], output: bytes, kind: type[Line]) -> Line:
    try:
        return decode_json(output, kind)
    except ValueError as error:
        raise _unexpected(command, str(error)) from error


def _ended(command: Sequence[str], code: int, said: str) -> TogetherError:
    return TogetherError(
        "{program} ended with code {code} and said: {said}; run it yourself: {command}",
        program=Path(command[0]).name,
        code=code,
        said=said[:300] or "nothing",
        command=" ".join(command),
    )


def _unexpected(command: Sequence[str], what: str) -> TogetherError:
    return TogetherError(
        "{program} printed something else than its results ({what}); take a llama.cpp of 2025 or later, or run it "
        "yourself: {command}",
        program=Path(command[0]).name,
        what=what[:300],
        command=" ".join(command),
    )
