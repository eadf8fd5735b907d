// The picture of the rings: machines in rows that go to and fro, so that those of the first ring follow one another,
// and behind them the ways of tokens. Boxes are laid out by the browser; ways run between them and never over one.

import { el } from "./dom.js";
import { MachineBox, toneOf } from "./box.js";
import { bandwidth, milliseconds } from "./units.js";

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 236; // pixels of a box
const BETWEEN = 104; // of a gap between two columns, where the figures of a link stand
const EDGE = 30; // of the space left of all columns, where tokens go back
const MOVES = 500; // milliseconds between two steps of tokens: an animation would draw sixty times a second
const STEP = 8; // between two ways beside one another

export class Picture {
  /** `choose` gets the machine that is clicked. */
  constructor(choose) {
    this.choose = choose;
    this.boxes = new Map();
    this.lines = document.createElementNS(SVG, "svg");
    this.lines.setAttribute("aria-hidden", "true");
    this.lines.classList.add("ways");
    this.app = el("div", { class: "app-box", title: "Questions begin here, and each token of an answer comes back" }, "this app");
    this.grid = el("div", { class: "machines-grid" });
    this.labels = el("div", { class: "link-labels" });
    this.node = el("div", { class: "picture", role: "group", "aria-label": "Machines" }, this.lines, this.app, this.grid, this.labels);
    new ResizeObserver(() => this.#layOut()).observe(this.node);
  }

  draw(picture) {
    this.picture = picture;
    const order = inOrder(picture);
    const tones = tonesOf(picture);
    for (const id of [...this.boxes.keys()].filter((known) => !order.some((machine) => machine.id === known))) this.boxes.delete(id);
    const nodes = order.map((machine) => {
      if (!this.boxes.has(machine.id)) this.boxes.set(machine.id, new MachineBox(() => this.choose(machine.id)));
      const box = this.boxes.get(machine.id);
      box.draw(machine, tones);
      return box.node;
    });
    const same = nodes.length === this.grid.children.length && nodes.every((node, at) => node === this.grid.children[at]);
    if (!same) this.grid.replaceChildren(...nodes);
    this.order = order.map((machine) => machine.id);
    const shape = JSON.stringify([this.order, picture.rings.map((ring) => [ring.ring, ring.places]), picture.links]);
    if (shape !== this.shape || !same) this.#layOut();
    this.shape = shape;
    this.#paint();
  }

  /** The state of each ring, on all of its ways. */
  #paint() {
    const tones = tonesOf(this.picture);
    const rings = new Map(this.picture.rings.map((ring) => [ring.ring, ring]));
    for (const way of this.lines.children) {
      const ring = rings.get(way.dataset.ring);
      if (ring) way.setAttribute("class", `way ${toneOf(tones[ring.ring])} ${ring.state.toLowerCase()} ${ring.running ? "running" : ""}`);
    }
    const moves = this.picture.rings.some((ring) => ring.running) && !matchMedia("(prefers-reduced-motion: reduce)").matches;
    if (moves && !this.timer) this.timer = setInterval(() => this.#move(), MOVES);
    if (!moves) this.#rest();
  }

  /** Tokens run on, while somebody looks. */
  #move() {
    if (document.hidden || !this.node.offsetParent) return this.#rest();
    this.moved = ((this.moved ?? 0) + 4) % 14;
    for (const way of this.lines.querySelectorAll(".running")) way.style.strokeDashoffset = -this.moved;
  }

  #rest() {
    clearInterval(this.timer);
    this.timer = 0;
  }

  #layOut() {
    if (!this.picture || !this.node.clientWidth) return;
    const columns = Math.max(1, Math.floor((this.node.clientWidth - EDGE + BETWEEN) / (WIDTH + BETWEEN)));
    const narrow = columns === 1;
    const shown = this.picture.rings.filter((ring) => ring.places.length);
    this.grid.style.gridTemplateColumns = narrow ? "minmax(0, 1fr)" : `repeat(${columns}, ${WIDTH}px)`;
    this.grid.style.columnGap = `${BETWEEN}px`;
    this.grid.style.rowGap = `${34 + 2 * STEP * shown.length}px`;
    this.grid.style.paddingLeft = `${EDGE + STEP * shown.length}px`;
    this.grid.style.marginTop = `${20 + STEP * shown.length}px`;
    this.places = new Map();
    this.order.forEach((id, at) => {
      const row = Math.floor(at / columns);
      const column = row % 2 ? columns - 1 - (at % columns) : at % columns;
      const box = this.boxes.get(id).node;
      box.style.gridRow = row + 1;
      box.style.gridColumn = column + 1;
      this.places.set(id, { row, column, box });
    });
    for (const place of this.places.values()) {
      const { box } = place;
      Object.assign(place, { left: box.offsetLeft, top: box.offsetTop, right: box.offsetLeft + box.offsetWidth, bottom: box.offsetTop + box.offsetHeight });
    }
    this.#drawWays(shown);
  }

  #drawWays(rings) {
    const ways = [];
    const labels = new Map();
    rings.forEach((ring, track) => {
      const known = ring.places.filter((id) => this.places.has(id));
      const stops = known.filter((id, at) => id !== known[at - 1]);
      if (!stops.length) return;
      ways.push([ring, this.#fromApp(this.places.get(stops[0]), track)]);
      stops.slice(1).forEach((id, at) => {
        const [a, b] = [this.places.get(stops[at]), this.places.get(id)];
        ways.push([ring, way(a, b, track)]);
        const pair = [stops[at], id].sort().join();
        if (!labels.has(pair)) labels.set(pair, label(a, b, this.#link(stops[at], id), rings.length));
      });
      ways.push([ring, this.#toApp(this.places.get(stops.at(-1)), track)]);
    });
    this.lines.setAttribute("width", this.node.clientWidth);
    this.lines.setAttribute("height", this.node.clientHeight);
    this.lines.replaceChildren(...ways.map(([ring, points]) => line(ring, points)));
    this.labels.replaceChildren(...[...labels.values()].filter(Boolean));
    this.#paint();
  }

  #link(one, other) {
    return this.picture.links.find((link) => [link.one, link.other].sort().join() === [one, other].sort().join());
  }

  #fromApp(first, track) {
    const x = this.app.offsetLeft + 14 + track * 2 * STEP;
    const y = first.top - 8 - track * STEP;
    const into = first.left + 20 + track * STEP;
    const bottom = this.app.offsetTop + this.app.offsetHeight;
    if (first.row === 0) return [[x, bottom], [x, y], [into, y], [into, first.top]];
    const edge = EDGE - 14 + track * STEP;
    const under = bottom + 4 + track * STEP;
    return [[x, bottom], [x, under], [edge, under], [edge, y], [into, y], [into, first.top]];
  }

  #toApp(last, track) {
    const x = last.left + 40 + track * STEP;
    const y = last.bottom + 10 + track * STEP;
    const edge = 6 + track * STEP;
    const up = this.app.offsetTop + 12;
    return [[x, last.bottom], [x, y], [edge, y], [edge, up], [this.app.offsetLeft, up]];
  }
}

// --- where machines are -----------------------------------------------------------------------------------------------

/** Those of the first ring in its order, then those of the others, then all that have no layers. */
function inOrder({ machines, rings }) {
  const wanted = [...new Set(rings.flatMap((ring) => ring.places))];
  const known = new Map(machines.map((machine) => [machine.id, machine]));
  const first = wanted.map((id) => known.get(id)).filter(Boolean);
  return [...first, ...machines.filter((machine) => !wanted.includes(machine.id))];
}

export function tonesOf({ rings }) {
  return Object.fromEntries(rings.map((ring, at) => [ring.ring, at]));
}

// --- ways -------------------------------------------------------------------------------------------------------------

function beside(a, b) {
  return a.row === b.row && Math.abs(a.column - b.column) === 1;
}

function below(a, b) {
  return a.column === b.column && b.row - a.row === 1;
}

/** The corners of the way from one box to another, which never leads over a third one. */
function way(a, b, track) {
  if (beside(a, b)) {
    const y = Math.max(a.top, b.top) + 26 + track * STEP;
    return a.column < b.column ? [[a.right, y], [b.left, y]] : [[a.left, y], [b.right, y]];
  }
  if (below(a, b)) {
    const x = a.left + 60 + track * STEP;
    return [[x, a.bottom], [x, b.top]];
  }
  const out = a.right - 20 - track * STEP;
  const into = b.right - 60 - track * STEP;
  const leave = a.bottom + 10 + track * STEP;
  const enter = b.top - 10 - track * STEP;
  if (b.row === a.row + 1) return [[out, a.bottom], [out, leave], [into, leave], [into, b.top]];
  const aisle = b.left - 8 - track * 6;
  return [[out, a.bottom], [out, leave], [aisle, leave], [aisle, enter], [into, enter], [into, b.top]];
}

function line(ring, points) {
  const made = document.createElementNS(SVG, "path");
  made.dataset.ring = ring.ring;
  made.setAttribute("d", rounded(points));
  return made;
}

/** A path through corners that are rounded where there is room. */
function rounded(points) {
  const parts = [`M${points[0].join(" ")}`];
  points.slice(1, -1).forEach((corner, at) => {
    const [before, after] = [points[at], points[at + 2]];
    const radius = Math.min(7, distance(before, corner) / 2, distance(corner, after) / 2);
    parts.push(`L${towards(corner, before, radius)}Q${corner.join(" ")} ${towards(corner, after, radius)}`);
  });
  return `${parts.join("")}L${points.at(-1).join(" ")}`;
}

const distance = ([x, y], [u, v]) => Math.abs(x - u) + Math.abs(y - v);

function towards([x, y], [u, v], radius) {
  const whole = distance([x, y], [u, v]) || 1;
  return `${x + ((u - x) * radius) / whole} ${y + ((v - y) * radius) / whole}`;
}

/** The figures of a link between neighbours; those of others stand in what is said of a machine. */
function label(a, b, link, tracks) {
  if (!link || !(beside(a, b) || below(a, b))) return null;
  const made = el("div", { class: "link-label" }, ...(link.ms === null ? ["not reached"] : [el("span", {}, milliseconds(link.ms)), el("span", {}, bandwidth(link.bytes_per_s))]));
  if (beside(a, b)) {
    made.style.left = `${Math.min(a.right, b.right)}px`;
    made.style.top = `${Math.max(a.top, b.top) - 2}px`;
    made.style.width = `${BETWEEN}px`;
    made.style.rowGap = `${STEP * (1 + tracks)}px`;
  } else {
    made.classList.add("beside");
    made.style.left = `${a.left + 60 + 4 * STEP}px`;
    made.style.top = `${a.bottom + 8}px`;
  }
  return made;
}
