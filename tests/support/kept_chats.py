"""Conversations for tests of the chat's page: imported as from a file, and an answer that grows. Knows no test."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from tests.support.patience import PATIENCE
from together.chats.exchange import FORMAT

JSON = dict[str, Any]


@contextmanager
def without_chats(url: str) -> Iterator[httpx.Client]:
    """The routes of an app without a conversation; what is written in some ends with the test."""
    with httpx.Client(base_url=url, timeout=PATIENCE, trust_env=False) as client:
        client.delete("/conversations").raise_for_status()
        yield client
        client.delete("/conversations").raise_for_status()


def turn(name: str, parent: str, role: str, text: str, **said: Any) -> JSON:
    return {"id": name, "parent": parent, "role": role, "state": "done", "created": 1.0, "said": {"text": text, **said}}


def imported(kept: httpx.Client, title: str, answer: str, question: str = "?", **said: Any) -> str:
    """A conversation of one question, as from a file; `said` is more of the answer."""
    turns = [turn("a", "", "user", question), turn("b", "a", "assistant", answer, model="toy", **said)]
    summary = {"id": "x", "title": title, "pinned": False, "created": 1.0, "changed": 1.0}
    copy = {"conversation": {"summary": summary, "leaf": "b", "turns": turns}}
    answer_json = kept.post("/conversations/import", content=json.dumps({"format": FORMAT, "chats": [copy]}))
    return str(answer_json.raise_for_status().json()[0]["id"])


# In the page: what it shows of an answer while that grows, block by block, and of its thoughts.
GROWING = """async () => {
  const script = document.querySelector("script[type=module]").src;
  const { TurnView } = await import(script.replace("app.js", "turn.js"));
  const said = { text: "*a*", reasoning: "", thought: 0, calls: [], files: [], model: "toy", figures: null, note: "" };
  const turn = { id: "b", parent: "a", role: "assistant", state: "writing", created: 1, said };
  const view = new TurnView({});
  const parts = () => [...view.text.children].filter((each) => !each.hidden).map((each) => each.textContent.trim());
  view.draw(turn, { blocks: [], tail: "*a*" }, [turn], new Map());
  const seen = [parts()];
  const grow = (text, shown) => {
    view.grow({ turn: "b", text, reasoning: "", calls: [] }, shown);
    seen.push(parts());
  };
  grow(" b", null);
  grow("\\n\\nc", { blocks: [{ html: "<p><em>a</em> b</p>", text: "" }], tail: "c" });
  const kept = view.text.firstElementChild;
  grow(" d\\n\\n<i>", { blocks: [{ html: null, text: "c d" }], tail: "<i>" });
  const thinking = new TurnView({});
  const titles = [];
  thinking.draw({ ...turn, said: { ...said, text: "" } }, { blocks: [], tail: "" }, [turn], new Map());
  for (const [text, reasoning] of [["", "hm"], ["so", ""]]) {
    thinking.grow({ turn: "b", text, reasoning, calls: [] }, null);
    titles.push(thinking.thoughtTitle.textContent.replace(/\\d.*/, "…"));
  }
  return [seen, view.text.querySelectorAll("em").length, kept === view.text.firstElementChild, titles];
}"""
