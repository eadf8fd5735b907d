// Whether models fit on the machines that are there: asked for what is in sight, two at a time, and shown as badges.

import { call, sentence } from "./api.js";
import { el } from "./dom.js";

const AT_ONCE = 2;
const AGAIN = 2000; // milliseconds until machines that are being measured are asked again
const MOST_AGAIN = 90;
const WORDS = { fits: "fits", tight: "tight", no: "does not fit" };

/** Answers by a model's name or place, kept until the machines change. */
export class Fits {
  constructor() {
    this.answers = new Map();
    this.wanted = new Map(); // what is in sight and was not asked: name → those who wait
    this.busy = 0;
    this.seen = new IntersectionObserver((entries) => this.#inSight(entries), { rootMargin: "200px" });
    this.asking = new WeakMap();
  }

  /** An element that gets the badges of `model` once it is in sight.

      `drawn` makes what stands below an open badge; `facts` names what of `modelFacts` does not stand elsewhere. */
  node(model, drawn, facts) {
    const node = el("div", { class: "fits", role: "group", "aria-label": `Whether ${model} fits` }, el("span", { class: "faint" }, "Looking whether it fits …"));
    this.asking.set(node, { model, drawn, facts, tries: 0 });
    const known = this.answers.get(model);
    if (known) this.#draw(node, known);
    this.seen.observe(node);
    return node;
  }

  /** The machines have changed: what is in sight is asked again. */
  forget() {
    this.answers.clear();
    for (const node of document.querySelectorAll(".fits")) {
      this.seen.unobserve(node);
      this.seen.observe(node);
    }
  }

  #inSight(entries) {
    for (const { isIntersecting, target } of entries) {
      const asked = this.asking.get(target);
      if (!isIntersecting || !asked) {
        if (asked) this.wanted.get(asked.model)?.delete(target);
        continue;
      }
      const known = this.answers.get(asked.model);
      if (known) this.#draw(target, known);
      else this.#want(target, asked);
    }
    this.#next();
  }

  #want(node, { model }) {
    if (!this.wanted.has(model)) this.wanted.set(model, new Set());
    this.wanted.get(model).add(node);
  }

  async #next() {
    if (this.busy >= AT_ONCE) return;
    const [model, nodes] = [...this.wanted].find(([, waiting]) => waiting.size) ?? [];
    if (!model) return;
    this.wanted.delete(model);
    this.busy += 1;
    try {
      const answer = await call("POST", "/library/fits", { model });
      this.answers.set(model, answer);
      for (const node of nodes) this.#draw(node, answer);
      if (answer.measuring) setTimeout(() => this.#again(model, nodes), AGAIN);
    } catch (refusal) {
      for (const node of nodes) {
        this.asking.get(node).shown = ""; // else the same answer as before is not drawn again
        node.replaceChildren(el("p", { class: "faint refusal" }, refusal.message));
      }
    } finally {
      this.busy -= 1;
      this.#next();
    }
  }

  #again(model, nodes) {
    for (const node of nodes) {
      const asked = this.asking.get(node);
      if (!node.isConnected || (asked.tries += 1) > MOST_AGAIN) continue;
      this.answers.delete(model);
      this.#want(node, asked);
    }
    this.#next();
  }

  #draw(node, answer) {
    const { drawn, facts: wanted, shown } = this.asking.get(node);
    const text = JSON.stringify(answer);
    if (shown === text) return;
    const open = node.querySelector("[aria-expanded=true]")?.dataset.form;
    const focused = node.contains(document.activeElement) && document.activeElement.dataset.form;
    this.asking.get(node).shown = text;
    const below = el("div", { class: "fit-why" });
    const badges = answer.forms.map((form) => badge(form, below, (it) => drawn(it, answer)));
    const facts = modelFacts(answer, wanted);
    node.replaceChildren(
      ...(facts ? [el("p", { class: "faint model-facts" }, facts)] : []),
      ...(badges.length ? [el("div", { class: "badges" }, badges)] : [el("p", { class: "refusal" }, sentence(answer.reason) || "It does not run here.")]),
      below,
    );
    for (const each of badges) {
      if (each.dataset.form === open) each.click();
      if (each.dataset.form === focused) each.focus();
    }
  }
}

/** One form: what it is called, whether it fits, how fast it would be; opens the reasons below. */
function badge(form, below, drawn) {
  const speed = form.tokens_per_second ? ` · about ${speedText(form.tokens_per_second)}` : "";
  const button = el(
    "button",
    { type: "button", class: `fit ${form.fit}`, title: sentence(form.sentence.split("\n")[0]), "aria-expanded": "false", data: { form: form.form, fit: form.fit } },
    el("b", {}, form.title),
    ` · ${WORDS[form.fit]}${speed}`,
  );
  button.addEventListener("click", () => {
    const opens = button.getAttribute("aria-expanded") === "false";
    for (const other of button.parentElement?.children ?? []) other.setAttribute("aria-expanded", "false");
    button.setAttribute("aria-expanded", String(opens));
    below.replaceChildren(...(opens ? reasons(form, drawn) : []));
  });
  return button;
}

function reasons(form, drawn) {
  const [first, ...more] = form.sentence.split("\n");
  const lines = [...more.map((line) => line.replace(/^- /, "")), ...form.why].map((line) => el("li", {}, sentence(line)));
  return [
    el("p", {}, `${sentence(first)}. ${sizeText(form.bytes)} of weights, ${form.bits.toFixed(1)} bits each.`),
    ...(lines.length ? [el("ul", {}, lines)] : []),
    ...drawn(form),
  ];
}

export const ALL_FACTS = ["family", "params", "context", "quantization"];

function modelFacts(answer, wanted) {
  const facts = {
    family: answer.family,
    params: answer.params > 0 && `${countText(answer.params)} parameters`,
    context: answer.context > 0 && `context of ${answer.context.toLocaleString("en")} tokens`,
    quantization: answer.quantization,
  };
  return wanted.map((name) => facts[name]).filter(Boolean).join(" · ");
}

// --- numbers ----------------------------------------------------------------------------------------------------------

function digits(value) {
  return value >= 100 ? Math.round(value).toLocaleString("en") : value.toPrecision(3).replace(/\.0+$/, "");
}

export function sizeText(bytes) {
  for (const [unit, scale] of [["GB", 1e9], ["MB", 1e6], ["kB", 1e3]]) {
    if (bytes >= scale) return `${digits(bytes / scale)} ${unit}`;
  }
  return bytes ? `${bytes} bytes` : "nothing";
}

export function countText(count) {
  for (const [unit, scale] of [["billion", 1e9], ["million", 1e6], ["thousand", 1e3]]) {
    if (count >= scale) return `${digits(count / scale)} ${unit}`;
  }
  return String(count);
}

export function timeText(seconds) {
  if (seconds < 90) return `${Math.max(Math.round(seconds), 1)} s`;
  return seconds < 5400 ? `${Math.round(seconds / 60)} minutes` : `${Math.round(seconds / 3600)} hours`;
}

function speedText(rate) {
  return `${rate >= 10 ? Math.round(rate) : rate.toPrecision(2)} tokens/s`;
}
