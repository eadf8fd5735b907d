"""The soak tool: drives a ring of real nodes with mixed lengths, people who leave and kills, then looks what is left.

    python -m tests.soak --minutes 10

prints one line of JSON, and ends with 1 if anything was wrong: a text, a sequence that no one owns, a leak. Knows no
framework: its model is the checksum toy.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import random
import sys
import tempfile
from contextlib import aclosing
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil

from tests.reliability.watching import at_rest, engine_of, holds_each_layer_once
from tests.support.checksum import EOS, QUIET, make_checksum_model
from tests.support.cluster import GREEDY, Node, ask, by_hand, right_answer, running_cluster, until
from together.errors import NotServing
from together.head.head import Head
from together.requests import ChatRequest, Message
from together.types import Sampling

LAYERS = 6
BLOCK = 2**18  # tokens: so large that few sequences fit, and prefixes have to go
PLAN = by_hand("anna=0:3,berta=3:6")
PROMPTS = 24
LONGEST_ANSWER = 90
REST_WITHIN = 20.0  # seconds
HANDLES_SLACK = 5  # threads, and files
MEMORY_SLACK = 1.1, 16 * 2**20  # times and bytes that a process may have more than it had before


@dataclass(frozen=True, slots=True)
class Load:
    """What is done to the ring; times in seconds."""

    seconds: float
    kill_every: float
    people: int = 8
    leave: float = 0.3  # share of requests whose reader leaves before the end
    seed: int = 0


@dataclass(slots=True)
class Counts:
    """What happened to requests."""

    finished: int = 0
    left: int = 0
    turned_away: int = 0  # while the ring was being mended
    kills: int = 0
    longest_stall: float = 0.0
    wrong: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Weight:
    """What the head and the nodes hold of the system; stages come and go, and are not counted."""

    threads: tuple[int, ...]
    files: tuple[int, ...]
    memory: tuple[int, ...]  # bytes

    @classmethod
    def of(cls, processes: list[psutil.Process]) -> Weight:
        gc.collect()
        files = (getattr(each, "num_handles", None) or each.num_fds for each in processes)
        return cls(
            tuple(each.num_threads() for each in processes),
            tuple(count() for count in files),
            tuple(each.memory_info().rss for each in processes),
        )


@dataclass(frozen=True, slots=True)
class Summary:
    """The outcome. `faults` are sentences; none is a pass."""

    seconds: float
    requests: Counts
    most_prefixes: int  # that were cached at a time
    room: int  # sequences and prefixes that fit at a time
    before: Weight
    after: Weight
    faults: tuple[str, ...]


Question = tuple[str, Sampling]


def expected(toy: Path, rng: random.Random) -> dict[Question, str]:
    """Prompts and their right answers. Some begin alike, so that prefixes are shared; some are long."""
    found = {}
    for index in range(PROMPTS):
        prompt = ("As I said. " * (index % 4) + f"Tell me about {index}. ") * rng.choice((1, 1, 2, 6))
        sampling = Sampling(temperature=1.0, seed=index) if index % 3 == 0 else GREEDY
        found[prompt, sampling] = right_answer(toy, prompt, LONGEST_ANSWER, sampling)
    return found


async def soak(home: Path, load: Load) -> Summary:
    """One ring for `load.seconds`."""
    toy = make_checksum_model(home / "toy", layers=LAYERS, quiet_ids=(*QUIET, EOS), step_ms=1, block=BLOCK)
    right = expected(toy, random.Random(load.seed))  # before anything runs: it takes this process seconds
    async with running_cluster(home, "anna", "berta", "carla", context=768, users=6) as (head, nodes):
        await head.load(toy, PLAN)
        return await Soak(head, nodes, right, load).run()


class Soak:
    """One run."""

    def __init__(self, head: Head, nodes: list[Node], right: dict[Question, str], load: Load) -> None:
        self._head, self._right, self._load = head, right, load
        self._random = random.Random(load.seed)
        self._processes = [psutil.Process(), *(psutil.Process(node.process.pid) for node in nodes)]
        self._counts = Counts()
        self._most_cached = 0

    async def run(self) -> Summary:
        await self._warm_up()
        before, began = Weight.of(self._processes), asyncio.get_running_loop().time()
        await self._work(began + self._load.seconds)
        faults = await self._rest()
        after = Weight.of(self._processes)
        room = engine_of(self._head).stats().capacity // BLOCK
        faults += [*self._counts.wrong, *grown(before, after)]
        if self._most_cached > room:
            faults.append(f"{self._most_cached} prefixes were cached where {room} fit")
        took = round(asyncio.get_running_loop().time() - began, 1)
        return Summary(took, self._counts, self._most_cached, room, before, after, tuple(faults))

    async def _warm_up(self) -> None:
        """What is grown once by use and by a mending is there before anything is counted."""
        chats = [asyncio.create_task(self._one()) for _ in range(2 * self._load.people)]
        await asyncio.sleep(0.3)
        self._kill()
        await asyncio.gather(*chats)
        await self._rest()
        self._counts = Counts(wrong=self._counts.wrong)

    async def _work(self, until_time: float) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(self._load.people):
                group.create_task(self._person(until_time))
            group.create_task(self._killer(until_time))

    async def _person(self, until_time: float) -> None:
        clock = asyncio.get_running_loop().time
        while clock() < until_time:
            await self._one()
            await asyncio.sleep(self._random.random() * 0.1)

    async def _killer(self, until_time: float) -> None:
        clock = asyncio.get_running_loop().time
        while (due := clock() + self._load.kill_every) < until_time:
            while clock() < due:
                self._most_cached = max(self._most_cached, engine_of(self._head).stats().cached)
                await asyncio.sleep(0.2)
            self._kill()

    def _kill(self) -> None:
        """Any stage of the ring, at any moment."""
        view = self._head.view()
        stages = [stage.pid for node in view.nodes for stage in node.stages if stage.ring == view.serving.ring]
        if pids := [pid for pid in stages if psutil.pid_exists(pid)]:
            psutil.Process(self._random.choice(pids)).kill()
            self._counts.kills += 1

    async def _one(self) -> None:
        """One request, and whether its text was right as far as it was read."""
        (prompt, sampling), right = self._random.choice(list(self._right.items()))
        tokens = self._random.randrange(1, LONGEST_ANSWER + 1)
        leaves = self._random.random() < self._load.leave
        most = self._random.randrange(tokens) if leaves else tokens
        try:
            text = await self._read(ChatRequest((Message("user", prompt),), sampling, tokens), most)
        except NotServing:
            self._counts.turned_away += 1
            await asyncio.sleep(0.5)
            return
        except Exception as error:  # whatever it is, it is the finding
            self._counts.wrong.append(f"a request ended with {type(error).__name__}: {error}")
            return
        self._counts.finished, self._counts.left = self._counts.finished + (not leaves), self._counts.left + leaves
        if text != right[: len(text)] or (len(text) < tokens and not leaves):
            self._counts.wrong.append(f"{prompt[:20]!r} was answered {text!r} and not {right[:tokens]!r}")

    async def _read(self, request: ChatRequest, most: int) -> str:
        """The text of up to `most` tokens; whoever reads 0 leaves while it waits."""
        clock = asyncio.get_running_loop().time
        text, last = "", clock()
        async with aclosing(self._head.chat(request)) as pieces:
            if most == 0:
                first = asyncio.ensure_future(anext(pieces))
                await asyncio.wait([first], timeout=self._random.random() * 0.05)
                first.cancel()
                await asyncio.gather(first, return_exceptions=True)
                return ""
            async for piece in pieces:
                text += piece.text
                self._counts.longest_stall = max(self._counts.longest_stall, round(clock() - last, 2))
                last = clock()
                if len(text) >= most:
                    break
        return text

    async def _rest(self) -> list[str]:
        """What is still held although nobody asks for anything."""
        try:
            await until(lambda: holds_each_layer_once(self._head, LAYERS), REST_WITHIN)
            await ask(self._head, tokens=1)  # a ring that was mended tells what it holds with its first answer
            await at_rest(self._head, REST_WITHIN)
            await self._head.load(request=PLAN)  # so that what is weighed is the same stages at the same places
            await ask(self._head, tokens=1)
            await at_rest(self._head, REST_WITHIN)
        except TimeoutError:
            stats = engine_of(self._head).stats()
            held = [str(stage.layers) for node in self._head.view().nodes for stage in node.stages]
            return [f"not at rest after {REST_WITHIN:.0f} s: {stats}, stages {held}"]
        return []


def grown(before: Weight, after: Weight) -> list[str]:
    """Sentences about what became more."""
    names = ("the head", "node anna", "node berta", "node carla")
    found = []
    for what in ("threads", "files"):
        for name, first, last in zip(names, getattr(before, what), getattr(after, what), strict=True):
            if abs(last - first) > HANDLES_SLACK:
                found.append(f"{name} had {first} {what} and has {last}")
    times, more = MEMORY_SLACK
    for name, first, last in zip(names, before.memory, after.memory, strict=True):
        if last > first * times + more:
            found.append(f"{name} had {first / 2**20:.0f} MiB and has {last / 2**20:.0f} MiB")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description="Drives a ring with mixed requests, aborts and kills, then looks.")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--kill-every", type=float, default=60.0, help="seconds")
    parser.add_argument("--people", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    load = Load(60 * given.minutes, given.kill_every, given.people, seed=given.seed)
    with tempfile.TemporaryDirectory() as home:
        summary = asyncio.run(soak(Path(home), load))
    print(json.dumps(asdict(summary)))
    return 1 if summary.faults else 0


if __name__ == "__main__":
    sys.exit(main())
