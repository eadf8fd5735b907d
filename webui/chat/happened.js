// What happened to the machines and models since the view was opened, told as it happens.

import { sentence } from "./api.js";
import { el } from "./dom.js";

const MOST = 30; // lines

export class Happened {
  constructor() {
    this.before = null;
    this.list = el("ol", { class: "happened", "aria-live": "polite" });
    this.node = el("section", { "aria-label": "What happened", hidden: true }, el("h2", {}, "What happened"), this.list);
  }

  /** Compare a picture with the one before. */
  note(picture) {
    if (this.before) for (const text of changes(this.before, picture)) this.#add(text);
    this.before = picture;
  }

  #add(text) {
    const time = new Date();
    this.list.prepend(el("li", {}, el("time", { dateTime: time.toISOString() }, time.toLocaleTimeString("en", { hour12: false })), " ", text));
    while (this.list.children.length > MOST) this.list.lastChild.remove();
    this.node.hidden = false;
  }
}

function changes(before, now) {
  const told = [];
  const machines = new Map(before.machines.map((machine) => [machine.id, machine]));
  for (const machine of now.machines) {
    const was = machines.get(machine.id);
    machines.delete(machine.id);
    if (!was) told.push(`${machine.name} is there`);
    else if (machine.state !== was.state && [machine.state, was.state].includes("FAILED"))
      told.push(machine.state === "FAILED" ? `${machine.name} is lost: ${machine.cause || "it does not answer"}` : `${machine.name} is back`);
    else if (machine.state !== was.state && [machine.state, was.state].includes("DRAINING"))
      told.push(machine.state === "DRAINING" ? `${machine.name} gives up its layers` : `${machine.name} takes layers again`);
  }
  for (const machine of machines.values()) told.push(`${machine.name} has left`);
  const rings = new Map(before.rings.map((ring) => [ring.model, ring]));
  for (const ring of now.rings) {
    const was = rings.get(ring.model);
    rings.delete(ring.model);
    if (ring.state === was?.state && JSON.stringify(ring.places) === JSON.stringify(was.places)) continue;
    told.push(saidOf(ring));
  }
  for (const ring of rings.values()) if (ring.model) told.push(`${ring.model} was unloaded`);
  return told;
}

/** A ring's sentence; a model's name that it begins with stays as it is. */
export function saidOf(ring) {
  return ring.sentence.startsWith(ring.model) ? ring.sentence : sentence(ring.sentence);
}
