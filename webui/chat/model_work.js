// What goes on with models: those that are loaded, and downloads, quantizations and conversions with their progress.

import { call, sentence } from "./api.js";
import { ask, el, iconButton, openMenu, say } from "./dom.js";
import { sizeText, timeText } from "./fits.js";

const DOES = { download: "Download of", quantize: "Quantizing", convert: "Converting" };
const STATES = { waiting: "waits for its turn", running: "", paused: "paused", done: "done", failed: "failed" };

/** Do something that the head may refuse; whether it did. */
export async function order(method, path, body) {
  try {
    await call(method, path, body);
    return true;
  } catch (refusal) {
    say(refusal.message, "error");
    return false;
  }
}

// --- jobs -------------------------------------------------------------------------------------------------------------

/** A row for each job, which stays the same element as long as the job is there. */
export class JobList {
  constructor(here) {
    this.here = here; // whether orders may be given
    this.rows = new Map();
    this.list = el("div", { class: "jobs" });
    this.node = el("section", { id: "jobs", hidden: true }, el("h2", {}, "Downloads and other work"), this.list);
  }

  draw(jobs) {
    this.node.hidden = !jobs.length;
    for (const [id, row] of this.rows) {
      if (jobs.some((job) => job.id === id)) continue;
      row.node.remove();
      this.rows.delete(id);
    }
    for (const job of jobs) {
      if (!this.rows.has(job.id)) {
        const row = new JobRow(this);
        this.rows.set(job.id, row);
        this.list.append(row.node);
      }
      this.rows.get(job.id).draw(job);
    }
  }
}

class JobRow {
  constructor(list) {
    this.bar = el("progress", { max: 1 });
    this.title = el("b", {});
    this.figures = el("span", { class: "faint" });
    this.said = el("p", { class: "said" });
    const act = (action) => order("POST", `/library/jobs/${this.job.id}`, { action });
    this.pause = el("button", { type: "button", class: "button small", onclick: () => act("pause") }, "Pause");
    this.resume = el("button", { type: "button", class: "button small", onclick: () => act("resume") }, "Go on");
    this.away = iconButton("close", "Give it up", () => act("remove"));
    this.list = list;
    this.buttons = el("div", { class: "row job-buttons" }, this.pause, this.resume, this.away);
    this.node = el("article", { class: "job" }, el("div", { class: "job-head" }, this.title, this.figures, this.buttons), this.bar, this.said);
  }

  draw(job) {
    this.job = job;
    const open = job.state === "running" || job.state === "waiting";
    this.node.dataset.state = job.state;
    this.buttons.hidden = !this.list.here();
    this.title.textContent = `${DOES[job.kind]} ${job.model}`;
    this.figures.textContent = figures(job);
    this.bar.hidden = !open && job.state !== "paused";
    this.bar.setAttribute("aria-label", `Progress of ${job.model}`);
    if (job.total > 0) this.bar.value = job.done / job.total;
    else this.bar.removeAttribute("value");
    this.said.textContent = sentence(job.sentence);
    this.said.hidden = !job.sentence;
    this.pause.hidden = !open;
    this.resume.hidden = job.state !== "paused" && job.state !== "failed";
    this.resume.textContent = job.state === "failed" ? "Try again" : "Go on";
    const away = job.state === "done" ? "Take it from the list" : "Give it up";
    this.away.title = away;
    this.away.setAttribute("aria-label", `${away}: ${job.model}`);
  }
}

function figures(job) {
  const parts = [STATES[job.state]];
  if (job.total > 0 && job.state !== "done") parts.push(`${sizeText(job.done)} of ${sizeText(job.total)}`);
  if (job.state === "running" && job.speed > 0) parts.push(`${sizeText(Math.round(job.speed))} a second`);
  if (job.state === "running" && job.left !== null) parts.push(`${timeText(job.left)} left`);
  return parts.filter(Boolean).join(" · ");
}

// --- loaded models ----------------------------------------------------------------------------------------------------

export class LoadedList {
  constructor(here) {
    this.here = here;
    this.list = el("div", { class: "loaded-models" });
    this.onDemand = el("input", { type: "checkbox", id: "on-demand", onchange: () => this.#demand() });
    this.demand = el(
      "label",
      { class: "check", title: "A chat or program that names another model of this machine waits until it is loaded; the least used one makes room" },
      this.onDemand,
      "Load a model when a request names it",
    );
    const layers = el("a", { class: "button small", href: "/machines", title: "Which machine has which layers of them, and how that may be changed" }, "See their layers on Machines");
    this.node = el("section", { id: "loaded" }, el("h2", {}, "Loaded now"), this.list, this.demand, el("div", { class: "row" }, layers));
  }

  draw({ loaded, on_demand }) {
    const text = JSON.stringify([loaded, this.here()]);
    this.onDemand.checked = on_demand;
    this.demand.hidden = !this.here();
    if (text === this.text) return;
    this.text = text;
    const focused = this.list.contains(document.activeElement) && document.activeElement.closest("[data-model]")?.dataset.model;
    const none = el("p", { class: "faint" }, this.here() ? "No model is loaded. Choose one below and press Load." : "No model is loaded.");
    this.list.replaceChildren(...(loaded.length ? loaded.map((model) => this.#card(model)) : [none]));
    if (focused) this.list.querySelector(`[data-model="${CSS.escape(focused)}"] button`)?.focus();
  }

  #card(model) {
    const facts = [
      model.form,
      model.bytes > 0 && `${sizeText(model.bytes)} of memory`,
      model.keep && "kept in memory",
      model.aliases.length > 0 && `also called ${model.aliases.join(", ")}`,
    ];
    const more = iconButton("more", `More for ${model.name}`, (event) => this.#menu(event.currentTarget, model), { "aria-haspopup": "menu" });
    return el(
      "article",
      { class: "model", data: { model: model.name, state: model.state } },
      el("div", { class: "model-head" }, el("h3", {}, model.name), this.here() && this.#buttons(model), this.here() && more),
      el("p", {}, model.sentence),
      el("p", { class: "faint" }, facts.filter(Boolean).join(" · ")),
      model.progress > 0 && model.progress < 1 && el("progress", { max: 1, value: model.progress, "aria-label": `Progress of ${model.name}` }),
    );
  }

  #buttons(model) {
    const stop = model.state === "LOADING" || model.state === "WAITING";
    const name = stop ? "Stop loading" : model.state === "FAILED" ? "Take it from the list" : "Unload";
    return el("button", { type: "button", class: "button small", title: `${name}: ${model.name}`, onclick: () => order("POST", "/control/unload", { model: model.name }) }, name);
  }

  #menu(button, model) {
    const items = [
      [model.keep ? "Let others have its memory" : "Keep it in memory", () => order("POST", "/control/keep", { model: model.name, on: !model.keep })],
      ["Give it another name", () => this.#alias(model)],
      ...model.aliases.map((name) => [`Give up the name ${name}`, () => order("POST", "/control/alias", { name })]),
    ];
    openMenu(button, items);
  }

  async #alias(model) {
    const text = "Programs that ask for this name get the model, as for gpt-4o.";
    const name = await ask({ title: `Another name for ${model.name}`, text, label: "Name", yes: "Give it" });
    if (name) await order("POST", "/control/alias", { name, model: model.name });
  }

  async #demand() {
    if (!(await order("POST", "/control/on-demand", { on: this.onDemand.checked }))) this.onDemand.checked = !this.onDemand.checked;
  }
}
