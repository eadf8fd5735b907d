// The view of models: loaded ones, work on them, what is on this machine and on the hub, and what it takes of the disk.

import { call, follow } from "./api.js";
import { announce, ask, el, icon, openMenu, say } from "./dom.js";
import { Fits, sizeText } from "./fits.js";
import { hubCard, localCard } from "./model_cards.js";
import { JobList, LoadedList, order } from "./model_work.js";

export class ModelsView {
  /** `page`: app.js. */
  constructor(page) {
    this.page = page;
    this.title = "Models";
    this.fits = new Fits();
    this.models = [];
    this.here = false; // whether this browser is on the app's machine, and may give orders
    this.jobs = new JobList(() => this.here);
    this.loaded = new LoadedList(() => this.here);
    this.words = el("input", {
      type: "search",
      id: "find-model",
      placeholder: "Find a model",
      "aria-label": "Find a model, on this machine or on the hub",
      maxLength: 200,
      oninput: () => this.#drawHere(),
    });
    this.ask = el("button", { class: "button", title: "Search the hub for these words (Enter)" }, icon("search"), "Search the hub");
    const form = el("form", { class: "find", role: "search", onsubmit: (event) => (event.preventDefault(), this.#search()) }, this.words, this.ask);
    this.list = el("div", { class: "models" });
    this.found = el("div", { class: "models" });
    this.hubHead = el("div", {});
    this.disk_ = el("div", {});
    this.notice = el("p", { class: "faint", hidden: true }, "Loading, downloads and searches of the hub are for the machine that the app runs on; open this page there.");
    this.hub = el("section", { id: "hub" }, el("h2", {}, "On the hub"), this.hubHead, this.found);
    this.node = el(
      "section",
      { class: "preferences", "aria-label": "Models", hidden: true },
      el(
        "div",
        { class: "preferences-inside models-inside" },
        this.notice,
        form,
        this.loaded.node,
        this.jobs.node,
        el("section", { id: "here" }, el("h2", {}, "On this machine"), this.list),
        this.hub,
        el("section", { id: "disk" }, el("h2", {}, "On the disk"), this.disk_),
      ),
    );
    this.form = form;
  }

  open() {
    this.read = this.refresh();
    this.end ??= follow("/library/events", (news) => this.#news(news), (state) => this.#state(state));
    if (!this.page.narrow) this.words.focus();
  }

  /** Another view is shown. */
  close() {
    this.end?.();
    this.end = null;
    this.numbers = null;
  }

  /** An app that comes back may be another one, whose counts of changes say nothing of the one before. */
  #state(state) {
    if (state === "live" && this.away) {
      this.refresh();
      this.fits.forget();
    }
    this.away = state === "lost";
  }

  /** The models that serve have changed, which this view hears by itself. */
  news() {}

  #news(news) {
    this.jobs.draw(news.jobs);
    this.loaded.draw(news);
    const before = this.numbers;
    this.numbers = { models: news.models, machines: news.machines };
    if (before && before.models !== news.models) this.refresh();
    if (before && before.machines !== news.machines) this.fits.forget();
    this.last = news;
  }

  /** What is here may have changed. */
  async refresh() {
    try {
      const { models, disk, hub, here } = await call("GET", "/library");
      Object.assign(this, { models, disk, access: hub, here });
    } catch (refusal) {
      this.list.replaceChildren(el("p", { class: "refusal" }, refusal.message));
      return;
    }
    this.notice.hidden = this.here;
    this.ask.hidden = !this.here;
    this.hub.hidden = !this.here;
    if (this.last) {
      this.loaded.draw(this.last);
      this.jobs.draw(this.last.jobs);
    }
    this.#drawHere();
    this.#drawAccess();
    this.#drawDisk();
  }

  // --- lists ----------------------------------------------------------------------------------------------------------

  #drawHere() {
    const words = this.words.value.toLowerCase().split(/\s+/).filter(Boolean);
    const shown = this.models.filter((model) => words.every((word) => `${model.name} ${model.title} ${model.family} ${model.source}`.toLowerCase().includes(word)));
    const text = JSON.stringify([shown, this.here]);
    if (text === this.shown) return;
    this.shown = text;
    const focused = this.list.contains(document.activeElement) && document.activeElement.closest("[data-id]")?.dataset.id;
    const none = words.length && this.models.length ? `No model of this machine has these words.${this.here ? " Press Enter to search the hub." : ""}` : "No model is here yet. Write a part of a name above and press Enter to find one on the hub.";
    this.list.replaceChildren(...(shown.length ? shown.map((model) => localCard(this, model)) : [el("p", { class: "faint" }, none)]));
    if (focused) this.list.querySelector(`[data-id="${CSS.escape(focused)}"] button`)?.focus();
  }

  async #search() {
    const words = this.words.value.trim();
    await this.read;
    if (!this.here) return;
    if (!words) {
      this.found.replaceChildren(el("p", { class: "faint" }, "Write a part of a model's name first, as qwen3 or llama 3b."));
      return;
    }
    this.ask.disabled = true;
    this.found.replaceChildren(el("p", { class: "faint" }, "Searching …"));
    try {
      const { models } = await call("POST", "/library/search", { words });
      const none = el("p", { class: "faint" }, `The hub has no model that writes text under “${words}”. Try fewer words, or a part of a name.`);
      this.found.replaceChildren(...(models.length ? models.map((model) => hubCard(this, model)) : [none]));
      announce(`${models.length} models found on the hub`);
      this.hub.scrollIntoView({ block: "start" });
    } catch (refusal) {
      this.found.replaceChildren(el("p", { class: "refusal" }, refusal.message));
    } finally {
      this.ask.disabled = false;
    }
  }

  /** Which hub is asked, and with what. */
  #drawAccess() {
    if (!this.access) return;
    const { url, mirror, offline, token } = this.access;
    const where = offline ? "HF_HUB_OFFLINE is set, so the hub is not asked; start the app without it to search." : `Searches ask ${mirror ? "the mirror " : ""}${url}${mirror ? ", which HF_ENDPOINT names" : ""}.`;
    const access = token ? "Gated models come with your token." : "Gated models need a token of yours.";
    this.hubHead.replaceChildren(
      el("p", { class: "faint" }, where, " ", !offline && access, " ", !offline && el("button", { type: "button", class: "link", onclick: () => this.#token() }, token ? "Change the token" : "Give a token")),
    );
    if (!this.found.children.length && !offline) this.found.replaceChildren(el("p", { class: "faint" }, "Nothing was searched for yet."));
  }

  async #token() {
    const text = `Make one at ${this.access.url}/settings/tokens. It is kept on this machine, where the hub's own tools keep it, and is shown to the hub alone. An empty one is forgotten.`;
    const token = await ask({ title: "Your token for the hub", text, label: "Token", yes: "Keep it", secret: true });
    if (token === null) return;
    if (await order("PUT", "/library/token", { token })) this.refresh();
  }

  #drawDisk() {
    const { folder, bytes, most, forms, spare } = this.disk;
    const rows = forms.map((form) => el("tr", {}, el("td", {}, form.title), el("td", {}, String(form.models)), el("td", {}, sizeText(form.bytes))));
    const able = this.models.filter((model) => spare.includes(model.id));
    const parts = this.models.filter((model) => model.part < 1 && model.own);
    const may = [
      ...able.map((model) => `${model.name} in ${model.title}, ${sizeText(model.bytes)}: it can be made again here, and goes by itself when the cache is full`),
      ...parts.map((model) => `${model.name}, ${sizeText(model.bytes)}: a download that is not whole`),
    ];
    this.disk_.replaceChildren(
      el("p", { class: "faint" }, `The cache has ${sizeText(bytes)} and may have ${sizeText(most)}${folder ? ` (${folder})` : ""}.`),
      el("meter", { min: 0, max: Math.max(most, 1), value: Math.min(bytes, most), "aria-label": "How full the cache is" }),
      ...(rows.length ? [el("table", { class: "disk-table" }, el("thead", {}, el("tr", {}, ["Form", "Models", "Size"].map((name) => el("th", { scope: "col" }, name)))), el("tbody", {}, rows))] : []),
      ...(may.length ? [el("h3", {}, "May go"), el("ul", {}, may.map((line) => el("li", {}, line)))] : [el("p", { class: "faint" }, "Nothing in it can go without being fetched again.")]),
    );
  }

  // --- deeds ----------------------------------------------------------------------------------------------------------

  /** Load a model in a form: at once where none is loaded, else a menu says in whose place. */
  load(button, model, quantize) {
    const loaded = (this.last?.loaded ?? []).filter((each) => each.state !== "FAILED" && each.state !== "EMPTY");
    const go = (beside) => this.#load(model, quantize, beside);
    if (!loaded.length) {
      go(false);
      return;
    }
    const beside = ["Load beside what is loaded", () => go(true)];
    openMenu(button, loaded.length === 1 ? [[`Load in place of ${loaded[0].name}`, () => go(false)], beside] : [beside]);
  }

  async #load(model, quantize, beside) {
    this.loaded.node.scrollIntoView({ block: "start" });
    announce("The model is being loaded");
    try {
      await call("POST", "/library/learn", { model });
      const { model: name } = await call("POST", "/control/load", { model, quantize, ...(beside ? { beside } : {}) });
      say(`${name} is loaded.`);
    } catch (refusal) {
      say(refusal.message, "error");
    }
  }

  async download(model) {
    if (await order("POST", "/library/jobs", { job: { kind: "download", model } })) this.jobs.node.scrollIntoView({ block: "start" });
  }

  async quantize(model, quantize) {
    if (await order("POST", "/library/jobs", { job: { kind: "quantize", model, quantize } })) this.jobs.node.scrollIntoView({ block: "start" });
  }
}
