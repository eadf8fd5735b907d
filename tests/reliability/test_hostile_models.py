"""Folders made to take memory and time, loaded in a real app: each is refused by name, and what serves goes on."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil
import pytest

from tests.conftest import RealApp
from tests.support.hostile import hostile_folders
from tests.support.patience import PATIENCE

GROWTH = 300 * 10**6  # bytes that any process may grow by
MESSAGE = 1000  # letters of a refusal
SHORT = (
    "doubled-tensor",
    "giant-dimension",
    "deep-entry",
    "wide-entry",
    "config-of-spaces",
    "doubled-config",
    "deep-tokenizer",
    "wide-index",
    "tensors-a-million-and-a-half",
)


@dataclass(slots=True)
class Watch:
    """The slowest answer of `/health`, and the most memory of each process, while it runs."""

    app: RealApp
    slowest: float = 0.0
    before: dict[int, int] = field(default_factory=dict)
    most: dict[int, int] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)

    def health(self) -> None:
        with httpx.Client(base_url=self.app.url, timeout=PATIENCE) as client:
            while not self.ended.wait(0.05):
                began = time.monotonic()
                if client.get("/health").status_code != 200:
                    self.failed.append("it does not serve")
                self.slowest = max(self.slowest, time.monotonic() - began)

    def memory(self) -> None:
        while not self.ended.wait(0.05):
            for process in self.app.tree():
                try:
                    size = process.memory_info().rss
                except psutil.Error:
                    continue
                self.before.setdefault(process.pid, size)
                self.most[process.pid] = max(self.most.get(process.pid, 0), size)

    @property
    def growth(self) -> int:
        return max(self.most[pid] - self.before[pid] for pid in self.most)


@contextmanager
def watched(app: RealApp) -> Iterator[Watch]:
    watch = Watch(app)
    threads = [threading.Thread(target=work) for work in (watch.health, watch.memory)]
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    try:
        yield watch
    finally:
        watch.ended.set()
        for thread in threads:
            thread.join()


def answer_of(app: RealApp) -> str:
    asked = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 8, "temperature": 0}
    return str(app.post("/v1/chat/completions", asked).json()["choices"][0]["message"]["content"])


def refused(app: RealApp, folder: Path, file: str) -> None:
    """One folder; prints what it took."""
    with watched(app) as watch:
        began = time.monotonic()
        answer = httpx.post(app.url + "/control/load", json={"model": str(folder)}, timeout=PATIENCE)
        took = time.monotonic() - began
    message = answer.json()["error"]["message"]
    cost = f"{took:.1f} s, health {watch.slowest * 1e3:.0f} ms, +{watch.growth / 1e6:.0f} MB"
    print(f"{folder.name}: {cost}: {message[:150]}")
    assert answer.status_code == 400, message
    assert folder.name in message
    assert file in message or "model.embed_tokens.weight" in message  # the one whose header is good
    assert len(message) < MESSAGE
    assert took < PATIENCE
    assert watch.growth < GROWTH
    assert watch.failed == []


@pytest.mark.full  # tests/head/test_refusals.py and tests/models have the folders
@pytest.mark.parametrize("names", [SHORT, pytest.param((), id="all", marks=pytest.mark.full)])
def test_hostile_folders_are_refused_and_what_serves_goes_on(
    real_app: RealApp, tmp_path: Path, names: tuple[str, ...]
) -> None:
    before, serving = answer_of(real_app), real_app.serving()["model"]
    folders = hostile_folders(real_app.home.parent / "toy", tmp_path, names)
    for folder, file in folders.values():
        refused(real_app, folder, file)
    assert answer_of(real_app) == before
    assert real_app.serving()["model"] == serving
