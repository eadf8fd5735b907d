"""Rows R1 to R4 with a real model: its stages and nodes die and freeze while it writes, on machines of their own.

A scenario for tests.support.namespaces: three machines with a node each, and the head on the first one.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median

import psutil

from tests.head.test_recovery import stage_of
from tests.reliability.watching import holds_each_layer_once
from tests.support.cluster import GREEDY, Node, by_hand, cluster_settings, running_head, start_node, until
from tests.support.namespaces import OWN, Switch, switch
from tests.support.smollm2 import LAYERS, smollm2_folder
from together.cluster_types import NodeState
from together.head.head import Head
from together.models.form import asked_form
from together.planning.request import PlanRequest
from together.requests import ChatRequest, Message
from together.settings import Settings
from together.types import Sampling

ROUNDS = 10  # of each kind of harm
TOKENS = 96  # so many that a frozen node is missed before the answer ends
DRAWN = Sampling(temperature=1.0, seed=11)
HARM_AT = 4, 20  # pieces of the answer after which it happens, drawn for each round
NAMES = ("anna", "berta", "carla")
PLAN = by_hand("anna=0:10,berta=10:20,carla=20:30")
QUESTIONS = (
    "Write a long story about a lighthouse.",
    "Explain in detail how rain comes about.",
    "Describe a walk through an old town, street by street.",
)


# --- the machines -----------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Machines:
    """Three machines, each with a node; the head and the first node share a network."""

    network: Switch
    settings: Settings
    nodes: dict[str, Node] = field(default_factory=dict)

    def start(self, name: str) -> None:
        """Its node, which may have been killed before; returns when it is ready."""
        machine = self.network.machines.get(name)
        host, within = (machine.address, machine.within) if machine else (OWN, ())
        home = str(self.settings.home_path / name)
        own = replace(self.settings, name=name, host=host, home=home, config=str(self.settings.home_path))
        self.nodes[name] = start_node(own, within=within)
        self.nodes[name].wait_ready()

    def stop(self) -> None:
        with ExitStack() as stack:
            for node in self.nodes.values():
                stack.callback(node.stop)


@asynccontextmanager
async def three_machines(folder: Path, *, exact: bool = False) -> AsyncIterator[tuple[Machines, Head]]:
    """The times of the cluster are those of a person's; only memory, context and people are less."""
    default = Settings()
    settings = cluster_settings(
        folder,
        host=OWN,
        backend="torch",
        dtype="fp32",
        exact=exact,
        memory="2GB",
        context=2048,
        heartbeat=default.heartbeat,
        node_timeout=default.node_timeout,
        lease=default.lease,
        load_timeout=default.load_timeout,
        step_timeout=default.step_timeout,
    )
    with switch(*NAMES[1:]) as network:
        machines = Machines(network, settings)
        try:
            for name in NAMES:
                machines.start(name)
            async with running_head(settings, *machines.nodes.values()) as head:
                yield machines, head
        finally:
            machines.stop()


# --- the harms --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Harm:
    """What is done to the node `name`, and what makes it good again when the answer is complete."""

    what: str
    sampling: Sampling
    do: Callable[[Machines, Head, str], None]
    undo: Callable[[Machines, str], None] = lambda machines, name: None


def kill_stage(machines: Machines, head: Head, name: str) -> None:
    psutil.Process(stage_of(head, name).pid).kill()


def freeze_stage(machines: Machines, head: Head, name: str) -> None:
    psutil.Process(stage_of(head, name).pid).suspend()


def kill_node(machines: Machines, head: Head, name: str) -> None:
    machines.nodes[name].kill()


def freeze_node(machines: Machines, head: Head, name: str) -> None:
    machines.nodes[name].freeze()


def freeze_machine(machines: Machines, head: Head, name: str) -> None:
    """As a laptop whose lid is closed."""
    machines.nodes[name].freeze()
    for stage in machines.nodes[name].stages():
        stage.suspend()


def thaw(machines: Machines, name: str) -> None:
    machines.nodes[name].thaw()
    for stage in machines.nodes[name].stages():
        with suppress(psutil.NoSuchProcess):
            stage.resume()


HARMS = (
    Harm("R1 kill -9 of a stage, greedy", GREEDY, kill_stage),
    Harm("R2 kill -9 of a stage, temperature 1 with a seed", DRAWN, kill_stage),
    Harm("R3 kill -9 of a node", GREEDY, kill_node, Machines.start),
    Harm("R4 SIGSTOP of a stage", GREEDY, freeze_stage, thaw),
    Harm("R4 SIGSTOP of a node", GREEDY, freeze_node, thaw),
    Harm("R4 SIGSTOP of a node and its stages", GREEDY, freeze_machine, thaw),
)


# --- the scenario -----------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Answer:
    """One answer; `stall` is the longest pause between two of its pieces, `loading` what loading took, in seconds."""

    text: str = ""
    pieces: int = 0
    stall: float = 0.0
    loading: float = 0.0
    same: bool = False  # as undisturbed

    @property
    def beside_load(self) -> float:
        return max(0.0, self.stall - self.loading)


async def answer_to(head: Head, question: str, sampling: Sampling, harm_at: int = 0, harm=lambda: None) -> Answer:
    """One chat; `harm` happens after so many pieces."""
    clock = asyncio.get_running_loop().time
    answer, last = Answer(), clock()
    watching = asyncio.create_task(watch_loading(head, answer))
    try:
        async for piece in head.chat(ChatRequest((Message("user", question),), sampling, TOKENS)):
            answer.text, answer.pieces = answer.text + piece.text, answer.pieces + 1
            if answer.pieces > 1:  # the first one waits for the prompt
                answer.stall = max(answer.stall, clock() - last)
            last = clock()
            if answer.pieces == harm_at:
                harm()
    finally:
        watching.cancel()
    return answer


async def watch_loading(head: Head, answer: Answer) -> None:
    """Adds up how long the head says that it loads."""
    clock = asyncio.get_running_loop().time
    last = clock()
    while True:
        await asyncio.sleep(0.02)
        now = clock()
        if str(head.view().serving.step).startswith("loading"):
            answer.loading += now - last
        last = now


def alive(head: Head) -> list[str]:
    return [node.name for node in head.view().nodes if node.state is not NodeState.FAILED]


@dataclass(slots=True)
class Trial:
    """Harm after harm to one cluster; `faults` are sentences, none is a pass."""

    machines: Machines
    head: Head
    plan: PlanRequest = PLAN
    right: dict[tuple[str, Sampling], Answer] = field(default_factory=dict)  # undisturbed
    disturbed: dict[Harm, list[Answer]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    dice: random.Random = field(default_factory=lambda: random.Random(7))

    async def begin(self) -> None:
        began = time.monotonic()
        await self.head.load(smollm2_folder(), self.plan)
        print(f"first load: {time.monotonic() - began:.1f} s", flush=True)
        for question in QUESTIONS:
            for sampling in (GREEDY, DRAWN):
                self.right[question, sampling] = await answer_to(self.head, question, sampling)
        print(f"longest undisturbed pause: {max(answer.stall for answer in self.right.values()):.2f} s", flush=True)

    async def once(self, harm: Harm, question: str) -> None:
        """One answer that is disturbed; the cluster is as before afterwards."""
        name, at = self.dice.choice(NAMES), self.dice.randint(*HARM_AT)
        place, answer = f"{harm.what}: {name} at piece {at}", Answer()
        try:
            try:
                answer = await answer_to(
                    self.head, question, harm.sampling, at, lambda: harm.do(self.machines, self.head, name)
                )
            finally:
                await self._restore(harm, name)
        except Exception as error:  # whatever it is, it is the finding
            self.faults.append(f"{place}: {type(error).__name__}: {error}")
        answer.same = answer.text == self.right[question, harm.sampling].text and answer.pieces >= at
        if not answer.same:
            right = self.right[question, harm.sampling].text
            pairs = enumerate(zip(answer.text, right, strict=False))
            apart = next((at for at, (one, other) in pairs if one != other), min(len(answer.text), len(right)))
            self.faults.append(f"{place}: from character {apart} on {answer.text!r} and not {right!r}")
        self.disturbed.setdefault(harm, []).append(answer)
        outcome = "same text" if answer.same else "WRONG"
        print(f"{place}: {outcome}, stall {answer.stall:.1f} s, of it loading {answer.loading:.1f} s", flush=True)

    async def _restore(self, harm: Harm, name: str) -> None:
        harm.undo(self.machines, name)
        await until(lambda: len(alive(self.head)) == len(NAMES))
        await self.head.load(request=self.plan)
        await until(lambda: holds_each_layer_once(self.head, LAYERS))

    def report(self) -> None:
        """Two lines for each kind, times in seconds."""
        for harm, answers in self.disturbed.items():
            same = sum(answer.same for answer in answers)
            print(f"{harm.what}: {same} of {len(answers)} texts the same")
            for what in ("stall", "beside_load"):
                times = sorted(getattr(answer, what) for answer in answers)
                each = ", ".join(f"{seconds:.1f}" for seconds in times)
                print(f"  {what}: median {median(times):.1f}, worst {times[-1]:.1f} ({each})")


async def harms(folder: Path) -> None:
    """Every kind of harm so many times, in turns. Prints what came of it; fails with all that went wrong."""
    async with three_machines(folder) as (machines, head):
        trial = Trial(machines, head)
        await trial.begin()
        for index in range(ROUNDS):
            for harm in HARMS:
                await trial.once(harm, QUESTIONS[index % len(QUESTIONS)])
        trial.report()
    assert not trial.faults, "\n".join(trial.faults)


QUANTIZED = replace(PLAN, form=asked_form("4"))
KILLS = 20


async def exact_kills(folder: Path) -> None:
    """Answers of 4-bit weights that a kill breaks, with `--exact`: none differs."""
    assert not await _kills(folder, exact=True)


async def usual_kills(folder: Path) -> None:
    """The same with int8 activations: prints how many differ, and where; each is whole."""
    await _kills(folder, exact=False)


async def _kills(folder: Path, *, exact: bool) -> list[str]:
    async with three_machines(folder, exact=exact) as (machines, head):
        trial = Trial(machines, head, QUANTIZED)
        await trial.begin()
        for index in range(KILLS):
            await trial.once(HARMS[index % 2], QUESTIONS[index % len(QUESTIONS)])
        trial.report()
    print(f"{len(trial.faults)} of {KILLS} differ", flush=True)
    for fault in trial.faults:
        print(f"  {fault}", flush=True)
    pieces = [answer.pieces for answers in trial.disturbed.values() for answer in answers]
    assert min(pieces) > max(HARM_AT), "an answer ended with the kill"
    return trial.faults
