// One machine of the picture: its state, its memory by what it is used for, and the layers that it has.

import { el } from "./dom.js";
import { milliseconds, size } from "./units.js";

const MOST_CELLS = 50; // layers of a model that are told apart by the eye

/** `tones`: the number of a colour by the ring's name; `choose` is told when it is clicked. */
export class MachineBox {
  constructor(choose) {
    this.name = el("strong", { class: "box-name" });
    this.state = el("span", { class: "pill" });
    this.device = el("div", { class: "box-line faint" });
    this.cause = el("div", { class: "box-cause", hidden: true });
    this.memory = el("div", { class: "memory", role: "img" });
    this.room = el("div", { class: "box-line faint" });
    this.layers = el("div", { class: "box-layers" });
    this.node = el(
      "button",
      { type: "button", class: "machine", onclick: choose },
      el("span", { class: "box-head" }, this.name, this.state),
      this.device,
      this.cause,
      this.memory,
      this.room,
      this.layers,
    );
    this.drawn = "";
  }

  draw(machine, tones) {
    const now = JSON.stringify([machine, tones]);
    if (now === this.drawn) return;
    this.drawn = now;
    const gone = machine.state === "FAILED";
    this.node.className = `machine ${machine.state.toLowerCase()}`;
    this.node.title = `${machine.name}: more about it`;
    this.name.textContent = machine.name;
    this.state.textContent = stateText(machine.state);
    this.state.className = `pill ${machine.state.toLowerCase()}`;
    this.device.textContent = machine.devices[0] ?? "being looked at";
    this.cause.hidden = !machine.cause;
    this.cause.textContent = machine.cause;
    this.#memory(machine, tones);
    this.room.textContent = gone ? "its memory is not known now" : machine.total ? `${size(machine.free)} free of ${size(machine.total)}` : "its memory is not known yet";
    this.layers.replaceChildren(...machine.stages.map((stage) => strip(stage, tones[stage.ring])));
    if (!machine.stages.length && !gone) this.layers.replaceChildren(el("div", { class: "box-line faint" }, "no layers"));
  }

  #memory(machine, tones) {
    const parts = memoryParts(machine);
    this.memory.hidden = !machine.total;
    this.memory.setAttribute("aria-label", parts.map(([, text, bytes]) => `${text}: ${size(bytes)}`).join(", "));
    this.memory.replaceChildren(
      ...parts.map(([kind, text, bytes, ring]) => {
        const made = el("span", { class: `use ${kind} ${ring === undefined ? "" : toneOf(tones[ring])}`, title: `${text}: ${size(bytes)}` });
        made.style.flexGrow = bytes / machine.total;
        return made;
      }),
    );
  }
}

/** What the memory of a machine is used for: [kind, text, bytes, ring]. */
export function memoryParts(machine) {
  const parts = machine.stages.flatMap((stage) => [
    ["weights", `weights of ${stage.model}`, stage.weights, stage.ring],
    ["cache", `conversations and work of ${stage.model}`, stage.cache, stage.ring],
  ]);
  const held = parts.reduce((sum, part) => sum + part[2], 0);
  parts.push(["others", "other programs", Math.max(0, machine.total - machine.free - held)]);
  parts.push(["free", "free", machine.free]);
  return parts.filter((part) => part[2] > 0);
}

export function toneOf(tone) {
  return tone === undefined ? "tone-other" : `tone-${tone % 6}`;
}

export function stateText(state) {
  return { IDLE: "ready", READY: "at work", LOADING: "loading", DRAINING: "leaving", FAILED: "lost" }[state] ?? state.toLowerCase();
}

/** The layers of a stage among all of its model. */
function strip(stage, tone) {
  const count = stage.stop - stage.start;
  const cells = el("span", { class: `cells ${toneOf(tone)} ${stage.state.toLowerCase()} ${stage.total > MOST_CELLS ? "" : "apart"}` });
  cells.style.flexGrow = count;
  cells.style.backgroundSize = `${100 / count}% 100%`;
  const before = el("span");
  before.style.flexGrow = stage.start;
  const after = el("span");
  after.style.flexGrow = stage.total - stage.stop;
  const loading = stage.state === "LOADING" && stage.progress > 0 ? ` · ${Math.round(100 * stage.progress)} %` : "";
  const figures = `${stage.start}:${stage.stop}${loading}${stage.ms && !loading ? ` · ${milliseconds(stage.ms)}` : ""}`;
  return el(
    "span",
    { class: "strip", title: `${stage.model}: layers ${stage.start}:${stage.stop} of ${stage.total} on ${stage.device}${stage.said ? `; ${stage.said}` : ""}` },
    el("span", { class: "strip-head" }, el("span", { class: "strip-model" }, stage.model), el("span", { class: "strip-figures" }, figures)),
    el("span", { class: "strip-cells" }, before, cells, after),
  );
}
