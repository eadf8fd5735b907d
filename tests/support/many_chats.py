"""Times lists and searches among 10,000 conversations of 20 turns: `python -m tests.support.many_chats [COUNT]`."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from together.chats.records import ChatSettings, ChatSummary, Conversation, Said, Turn
from together.chats.store import ChatStore

TURNS, ROUNDS = 20, 9
LETTERS = "春眠不觉晓处处闻啼鸟夜来风雨声花落知多少天地玄黄宇宙洪荒日月盈昃"


def fill(store: ChatStore, count: int, words: list[str], chance: random.Random) -> None:
    """Half of them are another owner's."""
    for number in range(count):
        turns, parent = [], ""
        for place in range(TURNS):
            text = f"{' '.join(chance.choices(words, k=40))} common {''.join(chance.choices(LETTERS, k=12))}"
            turn = Turn(f"{number}-{place}", parent, "assistant" if place % 2 else "user", "done", 0.0, Said(text))
            turns.append(turn)
            parent = turn.id
        summary = ChatSummary("", f"title {number} {chance.choice(words)}", False, 0.0, 0.0)
        store.put(
            "local" if number % 2 else "another", [(Conversation(summary, ChatSettings(), parent, tuple(turns)), ())]
        )


def timed(name: str, work: Callable[[], tuple[ChatSummary, ...]]) -> None:
    times = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        found = work()
        times.append(time.perf_counter() - began)
    print(f"{name:30} {1e3 * median(times):8.1f} ms, {len(found)} found")


def main() -> None:
    count, chance = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000, random.Random(1)
    words = ["".join(chance.choices("abcdefghijklmnop", k=chance.randint(3, 9))) for _ in range(20_000)]
    with TemporaryDirectory() as folder:
        store = ChatStore(Path(folder) / "conversations.db")
        fill(store, count, words, chance)
        print(f"{count} conversations of {TURNS} turns, {store.path.stat().st_size / 1e6:.0f} MB")
        timed("list", lambda: store.recent("local"))
        last = store.recent("local")[-1].id
        timed("its next page", lambda: store.recent("local", last))
        for searched in ("common", words[5], words[7][:2], "春", "花落", f"风雨 {words[9]}", "title", "nothing"):
            timed(f"search {searched!r}", lambda searched=searched: store.search("local", searched))  # type: ignore[misc]
        store.close()


if __name__ == "__main__":
    main()
