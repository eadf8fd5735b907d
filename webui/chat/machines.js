// The view of machines: what serves, the picture, what happened lately, and what can be done about it.

import { call, sentence } from "./api.js";
import { memoryParts, stateText } from "./box.js";
import { el, iconButton, say } from "./dom.js";
import { Happened, saidOf } from "./happened.js";
import { Picture } from "./picture.js";
import { bandwidth, milliseconds, perSecond, size } from "./units.js";

const SPEED_OVER = 4000; // milliseconds that a speed is the mean of

export class MachinesView {
  /** `page`: app.js. */
  constructor(page) {
    this.page = page;
    this.title = "Machines";
    this.wide = true;
    this.chosen = "";
    this.speeds = new Map();
    this.rings = el("div", { class: "rings" });
    this.offers = el("div", { class: "offers" });
    this.locked = el("div");
    this.picture = new Picture((id) => this.#choose(id));
    this.detail = el("section", { class: "machine-detail", "aria-label": "The chosen machine", hidden: true });
    this.happened = new Happened();
    this.onDemand = el("input", { type: "checkbox", id: "machines-on-demand", onchange: () => this.#demand() });
    this.node = el(
      "section",
      { class: "preferences machines", "aria-label": "Machines", hidden: true },
      el(
        "div",
        { class: "machines-inside" },
        this.rings,
        this.offers,
        this.picture.node,
        legend(),
        this.detail,
        this.happened.node,
        this.locked,
        el(
          "div",
          { class: "row deeds-row" },
          el("a", { class: "button primary", href: "/split", title: "See which split would be fast, change it by hand, and load it" }, "Split and load a model"),
          el(
            "label",
            { class: "switch", title: "A model that was not used for long makes room for it" },
            this.onDemand,
            "Load a model when a request names it",
          ),
        ),
      ),
    );
  }

  open() {
    this.news();
  }

  close() {
    // the picture rests by itself where nobody looks
  }

  /** The machines, the models or their figures have changed. */
  news() {
    const { machines } = this.page;
    if (this.node.hidden || !machines) return;
    this.#measure(machines.rings);
    this.happened.note(machines);
    this.rings.replaceChildren(...(machines.rings.length ? machines.rings.map((ring) => this.#ring(ring)) : [nothing()]));
    const pressed = this.offers.contains(document.activeElement) && document.activeElement.id;
    this.offers.replaceChildren(...this.#offers(machines));
    if (pressed) document.getElementById(pressed)?.focus();
    this.picture.draw(machines);
    this.locked.replaceChildren(...machines.locked.map((text) => el("p", { class: "faint" }, sentence(text))));
    if (this.onDemand !== document.activeElement) this.onDemand.checked = machines.on_demand;
    this.#describe();
  }

  /** Tokens a second of each ring, of the counters of the last seconds. */
  #measure(rings) {
    const now = performance.now();
    for (const ring of rings) {
      const seen = (this.speeds.get(ring.ring) ?? []).filter(([at, tokens]) => now - at < SPEED_OVER && tokens <= ring.tokens);
      seen.push([now, ring.tokens]);
      this.speeds.set(ring.ring, seen);
    }
    for (const name of [...this.speeds.keys()]) if (!rings.some((ring) => ring.ring === name)) this.speeds.delete(name);
  }

  #speed(ring) {
    const seen = this.speeds.get(ring.ring) ?? [];
    const [[since, before], [now, tokens]] = [seen[0], seen.at(-1)];
    return ring.running && now > since ? (1000 * (tokens - before)) / (now - since) : 0;
  }

  // --- what serves ----------------------------------------------------------------------------------------------------

  #ring(ring) {
    const busy = ["LOADING", "RECOVERING"].includes(ring.state);
    const speed = this.#speed(ring);
    const figures = [
      speed > 0 && perSecond(speed),
      ring.step_ms > 0 && `${milliseconds(ring.step_ms)} for a token, of that ${milliseconds(ring.link_ms)} on the way between machines`,
      ring.waiting > 0 && `${ring.waiting} waiting`,
    ].filter(Boolean);
    return el(
      "div",
      { class: `ring ${ring.state.toLowerCase()}`, data: { model: ring.model } },
      el("div", { class: "ring-head" }, el("h2", {}, ring.model || "No model"), el("span", { class: `pill ${ring.state.toLowerCase()}` }, ring.state.toLowerCase())),
      el("p", { role: "status" }, saidOf(ring)),
      busy && ring.progress > 0 && el("progress", { max: 1, value: ring.progress, "aria-label": `${ring.model}: how much is there` }),
      figures.length > 0 && el("p", { class: "faint figures-line" }, figures.join(" · ")),
    );
  }

  #offers({ rings, offer }) {
    const made = [];
    const button = (id, text, hint, deed) => el("button", { type: "button", class: "button primary", id, title: hint, onclick: deed }, text);
    if (rings.some((ring) => ring.state === "FAILED"))
      made.push(["", button("load-again", "Load again", "Try once more to load the model that failed", () => this.#order("load", {}))]);
    if (offer) made.push([offer, button("load-last", "Load it", "Load what was loaded last, with the same split", () => this.#order("last", {}))]);
    for (const { advice, model, state } of rings)
      if (advice && state === "READY")
        made.push([`A better split: ${advice}.`, button("rebalance", "Move the layers", "Load that split; answers go on", () => this.#order("balance", { model }))]);
    return made.map(([text, deed]) => el("div", { class: "offer" }, text && el("span", {}, sentence(text)), deed));
  }

  async #order(path, body) {
    try {
      await call("POST", `/control/${path}`, body);
      return true;
    } catch (refusal) {
      const said = this.page.machines?.rings.some((ring) => sentence(ring.sentence) === refusal.message);
      if (!said) say(refusal.message, "error");
      return false;
    }
  }

  async #demand() {
    const { checked } = this.onDemand;
    if (!(await this.#order("on-demand", { on: checked }))) this.onDemand.checked = !checked;
  }

  // --- one machine ----------------------------------------------------------------------------------------------------

  #choose(id) {
    this.chosen = this.chosen === id ? "" : id;
    this.#describe();
    if (this.chosen) this.detail.scrollIntoView({ block: "nearest" });
  }

  #describe() {
    const machine = this.page.machines.machines.find((each) => each.id === this.chosen);
    const now = JSON.stringify([machine, this.page.machines.links]);
    this.detail.hidden = !machine;
    if (!machine || now === this.described) return;
    this.described = now;
    const facts = [
      ["State", [stateText(machine.state), machine.cause].filter(Boolean).join(": ")],
      ["Address", machine.address],
      ["Devices", machine.devices.join(", ")],
      ["Connected by", machine.wifi ? "Wi-Fi; a cable is faster" : ""],
      ["Memory", machine.total ? memoryParts(machine).map(([, text, bytes]) => `${text} ${size(bytes)}`).join(", ") : ""],
      ...machine.stages.map((stage) => [stage.model, `layers ${stage.start}:${stage.stop} of ${stage.total} on ${stage.device}${stage.said ? `; ${stage.said}` : ""}`]),
      ...this.#links(machine.id),
      ...machine.notes.map((note) => ["Note", sentence(note)]),
    ].filter(([, text]) => text);
    const focused = this.detail.contains(document.activeElement);
    this.detail.replaceChildren(
      el("div", { class: "drawer-head" }, el("h2", {}, machine.name), iconButton("close", "Close what is said of this machine", () => this.#choose(machine.id))),
      el("dl", { class: "keys" }, facts.map(([name, text]) => [el("dt", {}, name), el("dd", {}, text)])),
    );
    if (focused) this.detail.querySelector("button").focus();
  }

  #links(id) {
    const { links, machines } = this.page.machines;
    const names = new Map(machines.map((machine) => [machine.id, machine.name]));
    return links
      .filter((link) => [link.one, link.other].includes(id))
      .map((link) => {
        const other = link.one === id ? link.other : link.one;
        const text = link.ms === null ? "not reached" : `${milliseconds(link.ms)} for a token, ${bandwidth(link.bytes_per_s)}`;
        return [`Link to ${other ? (names.get(other) ?? "a machine that left") : "the app"}`, text];
      });
  }
}

function nothing() {
  return el("p", { class: "faint" }, "No model is loaded. Choose one below: Split and load a model.");
}

function legend() {
  const parts = [
    ["weights tone-0", "weights"],
    ["cache tone-0", "conversations and work"],
    ["others", "other programs"],
    ["free", "free"],
  ];
  return el("p", { class: "legend faint" }, "Memory: ", parts.map(([kind, text]) => [el("span", { class: `use ${kind}` }), `${text} `]));
}
