"""Made-up pictures of many machines, and what of them a browser draws over one another. Knows no test."""

from __future__ import annotations

from typing import Any

JSON = dict[str, Any]
RINGS = {"large": (*range(10),), "middle": (10, 3, 12, 5, 11), "small": (13, 7)}  # which machines have which layers
LAYERS = 96


def made_up(count: int) -> JSON:
    machines = [_machine(number) for number in range(count)]
    for name, places in RINGS.items():
        each = LAYERS // len(places)
        for index, place in enumerate(places):
            machines[place]["stages"].append(_stage(name, index * each, (index + 1) * each))
    links = [
        {"one": f"n{one}", "other": f"n{other}", "ms": 0.4, "bytes_per_s": 118e6}
        for one in range(count)
        for other in range(one + 1, count)
    ]
    rings = [_ring(name, places) for name, places in RINGS.items()]
    return {"machines": machines, "rings": rings, "links": links, "offer": "", "locked": [], "on_demand": False}


def _machine(number: int) -> JSON:
    name = f"machine-{number}" + " with a long name" * (number % 3 == 0)
    lost = number == 14
    return {
        "id": f"n{number}",
        "name": name,
        "address": f"192.168.1.{number + 10}:47600",
        "state": "FAILED" if lost else "READY",
        "cause": "lost: it does not answer since 12 s; is the machine on, and in the same network?" if lost else "",
        "devices": ["A device whose description is longer than its box is wide"],
        "total": 24_000_000_000,
        "free": 9_000_000_000,
        "stages": [],
        "notes": [],
        "wifi": False,
    }


def _stage(ring: str, start: int, stop: int) -> JSON:
    return {
        "model": f"{ring} model",
        "ring": ring,
        "start": start,
        "stop": stop,
        "total": LAYERS,
        "device": "torch/cuda:0",
        "state": "READY",
        "progress": 0.0,
        "said": "",
        "weights": (stop - start) * 100_000_000,
        "cache": (stop - start) * 20_000_000,
        "used": 0.5,
        "ms": 2.5,
    }


def _ring(name: str, places: tuple[int, ...]) -> JSON:
    return {
        "model": f"{name} model",
        "ring": name,
        "state": "READY",
        "sentence": f"{name} model is ready on {len(places)} stages",
        "progress": 1.0,
        "places": [f"n{place}" for place in places],
        "running": 0,
        "waiting": 0,
        "tokens": 0,
        "step_ms": 40.0,
        "link_ms": 5.0,
        "advice": "",
    }


# In the page: how many boxes and ways a picture has, and what lies over what: boxes and figures of links over each
# other, and ways over boxes, by points along them.
OVERLAPS = """async (picture) => {
  const script = document.querySelector("script[type=module]").src;
  const { Picture } = await import(script.replace("app.js", "picture.js"));
  const drawn = new Picture(() => {});
  const inside = document.querySelector(".machines-inside");
  inside.replaceChildren(drawn.node);
  drawn.draw(picture);
  await new Promise((done) => setTimeout(done, 300));
  const rect = (element) => element.getBoundingClientRect();
  const boxes = [...drawn.node.querySelectorAll(".machine")].map((box) => [box.innerText.split("\\n")[0], rect(box)]);
  const labels = [...drawn.node.querySelectorAll(".link-label span")].map((label) => [label.innerText, rect(label)]);
  const over = [];
  const all = [...boxes, ...labels];
  all.forEach(([one, a], at) => all.slice(at + 1).forEach(([other, b]) => {
    if (a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom) over.push(`${one} over ${other}`);
  }));
  const ways = [...drawn.node.querySelectorAll(".way")];
  const origin = rect(drawn.lines);
  for (const way of ways) {
    for (let at = 0; at < way.getTotalLength(); at += 3) {
      const { x, y } = way.getPointAtLength(at);
      const [left, top] = [origin.left + x, origin.top + y];
      const within = (box) => left > box.left + 2 && left < box.right - 2 && top > box.top + 2 && top < box.bottom - 2;
      const hit = boxes.find(([, box]) => within(box));
      if (hit) over.push(`a way of ${way.dataset.ring} over ${hit[0]}`);
    }
  }
  const full = [...drawn.node.querySelectorAll(".machine")].filter((box) => box.scrollWidth > box.clientWidth);
  over.push(...full.map((box) => `${box.innerText} is wider than its box`));
  return { boxes: boxes.length, ways: ways.length, over: [...new Set(over)] };
}"""
