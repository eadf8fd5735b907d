// The settings of one conversation, beside it: model, system prompt, sampling, presets.

import { call } from "./api.js";
import { ask, el, iconButton, say } from "./dom.js";
import { ToolFields } from "./tools.js";

export const NEW_CHATS = "New chats"; // the preset with which new ones begin
const AFTER = 400; // milliseconds between the last change and its order

export const NOTHING_SET = {
  model: "",
  system: "",
  temperature: null,
  top_k: null,
  top_p: null,
  min_p: null,
  repetition_penalty: null,
  presence_penalty: null,
  frequency_penalty: null,
  seed: null,
  max_tokens: null,
  stop: [],
  thinking: null,
  servers: [],
  functions: "",
  calls: "auto",
  json_schema: "",
  preset: "",
};

// name, label, hint, least, most, step
const NUMBERS = [
  ["temperature", "Temperature", "0 takes the likeliest token; higher values vary more", 0, 2, 0.05],
  ["top_k", "Top-k", "Only the likeliest tokens; 0 is off", -1, 2147483647, 1],
  ["top_p", "Top-p", "Only the likeliest tokens that make up this part; 1 is off", 0.01, 1, 0.01],
  ["min_p", "Min-p", "Only tokens at least this likely beside the likeliest; 0 is off", 0, 1, 0.01],
  ["repetition_penalty", "Repetition penalty", "Above 1 makes tokens less likely that were there already", 0.01, 10, 0.01],
  ["presence_penalty", "Presence penalty", "Above 0 brings new topics", -2, 2, 0.1],
  ["frequency_penalty", "Frequency penalty", "Above 0 repeats less, the more often a token was there", -2, 2, 0.1],
  ["seed", "Seed", "The same seed gives the same answer; empty draws another each time", 0, 9007199254740991, 1],
  ["max_tokens", "Max tokens", "Where an answer ends at the latest; -1 lets it fill the context", -1, 2147483647, 1],
];
const OURS = { presence_penalty: "0", frequency_penalty: "0", seed: "random" };

/** Fields for settings; `changed` gets all of them some time after the last change. */
export class SettingsForm {
  constructor(page, changed) {
    this.page = page;
    this.changed = changed;
    this.now = NOTHING_SET;
    this.loadable = [];
    this.sent = null; // the order of the last change
    this.fields = {};
    const id = (name) => `${name.replaceAll("_", "-")}-${SettingsForm.count}`;
    SettingsForm.count += 1;
    const labelled = (name, label, field, hint) => {
      field.id = id(name);
      field.title = hint;
      field.addEventListener("input", () => this.#input());
      this.fields[name] = field;
      return el("div", { class: "field", data: { field: name } }, el("label", { for: field.id }, label), field);
    };
    this.tools = new ToolFields(() => this.#input());
    this.model = el("select");
    const thinking = el("select", {}, el("option", { value: "" }, "As the model does"), el("option", { value: "on" }, "On"), el("option", { value: "off" }, "Off"));
    this.thinking = labelled("thinking", "Thinking", thinking, "Whether the model thinks before it answers");
    this.node = el(
      "div",
      { class: "settings-form" },
      labelled("model", "Model", this.model, "Which model answers"),
      labelled("system", "System prompt", el("textarea", { rows: 4, placeholder: "You are …" }), "What the model is told before the conversation"),
      this.thinking,
      el(
        "div",
        { class: "numbers" },
        NUMBERS.map(([name, label, hint, min, max, step]) =>
          labelled(name, label, el("input", { type: "number", min, max, step: "any", inputMode: step === 1 ? "numeric" : "decimal" }), hint),
        ),
      ),
      labelled("stop", "Stop at", el("textarea", { rows: 2, placeholder: "One text a line" }), "An answer ends before any of these texts"),
      this.tools.node,
      el("button", { type: "button", class: "button", title: "Empty all fields, so that the model's own values hold", onclick: () => this.restore() }, "Restore the model's defaults"),
    );
  }

  static count = 0;

  /** Show `settings`, but for the field that is being changed. */
  draw(settings) {
    if (this.timer) return; // a change of ours is on its way
    this.now = settings;
    this.tools.draw(settings);
    this.drawModels();
    for (const [name, field] of Object.entries(this.fields)) {
      if (field !== document.activeElement) field.value = shownValue(name, settings[name]);
    }
  }

  /** Look which models there are, also those that a question loads. */
  async look() {
    const listed = await call("GET", "/v1/models").catch(() => ({ data: [] }));
    this.loadable = listed.data.map((model) => model.id);
    this.drawModels();
    await this.tools.look();
  }

  drawModels() {
    const known = this.page.serving.models.map((model) => model.name);
    const names = [...new Set([...known, ...this.loadable, this.now.model].filter(Boolean))];
    const options = [["", known.length > 1 ? `The first one (${known[0]})` : (known[0] ?? "The one that serves")], ...names.map((name) => [name, name])];
    const before = JSON.stringify(options);
    if (before !== this.options) {
      this.options = before;
      this.model.replaceChildren(...options.map(([value, text]) => el("option", { value }, text)));
    }
    if (this.model !== document.activeElement) this.model.value = this.now.model;
    const model = this.page.model(this.now.model);
    this.thinking.hidden = !(model?.thinks || this.now.thinking !== null);
    for (const [name] of NUMBERS) {
      const usual = name === "max_tokens" ? document.body.dataset.answerLimit : (model?.defaults[name] ?? OURS[name] ?? "");
      const whose = model?.by_author.includes(name) ? " (the author's)" : "";
      this.fields[name].placeholder = `${usual}${whose}`;
    }
  }

  #input() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.flush(), AFTER);
  }

  /** Send what was changed now; a sentence where a field has what cannot be sent. That stays there, unless this is the `last` time. */
  flush(last = false) {
    if (!this.timer) return "";
    clearTimeout(this.timer);
    const wrong = Object.values(this.fields).find((field) => !field.checkValidity());
    if (wrong && !last) wrong.reportValidity();
    if (!wrong || last) this.timer = 0;
    if (wrong) return `${wrong.labels[0].textContent}: ${wrong.validationMessage} The settings were not changed.`;
    const read = Object.fromEntries(Object.entries(this.fields).map(([name, field]) => [name, valueOf(name, field.value)]));
    this.now = { ...this.now, ...read, ...this.tools.values };
    this.sent = this.changed(this.now);
    return "";
  }

  async restore() {
    clearTimeout(this.timer);
    this.timer = 0;
    this.now = { ...NOTHING_SET, model: this.now.model, system: this.now.system };
    this.tools.clear();
    this.draw(this.now);
    await this.changed(this.now);
  }
}

function shownValue(name, value) {
  if (name === "stop") return value.join("\n");
  if (name === "thinking") return value === null ? "" : value ? "on" : "off";
  return value ?? "";
}

function valueOf(name, text) {
  if (name === "model" || name === "system") return text;
  if (name === "stop") return text.split("\n").filter(Boolean);
  if (name === "thinking") return text ? text === "on" : null;
  return text === "" ? null : Number(text);
}

// --- the drawer -------------------------------------------------------------------------------------------------------

export class SettingsDrawer {
  constructor(page) {
    this.page = page;
    this.form = new SettingsForm(page, (settings) => page.useSettings(settings));
    this.presets = el("select", { id: "preset", title: "Settings that you kept under a name", onchange: () => this.#use() });
    this.node = el(
      "aside",
      { class: "drawer", id: "drawer", "aria-label": "Settings of this chat", hidden: true },
      el("div", { class: "drawer-head" }, el("h2", {}, "Settings of this chat"), iconButton("close", "Close the settings", () => page.showSettings(false))),
      el(
        "div",
        { class: "field" },
        el("label", { for: "preset" }, "Preset"),
        el(
          "div",
          { class: "row" },
          this.presets,
          el("button", { type: "button", class: "button small", title: "Keep these settings under a name", onclick: () => this.#keep() }, "Keep"),
          el("button", { type: "button", class: "button small", title: "Delete the chosen preset", onclick: () => this.#delete() }, "Delete"),
        ),
      ),
      this.form.node,
    );
  }

  async open() {
    this.form.draw(this.page.settings);
    await Promise.all([this.#load(), this.form.look()]);
  }

  async #load() {
    try {
      this.kept = await call("GET", "/presets");
    } catch (refusal) {
      say(refusal.message, "error");
      return;
    }
    const names = this.kept.map((preset) => preset.name);
    this.presets.replaceChildren(el("option", { value: "" }, "None"), ...names.map((name) => el("option", { value: name }, name)));
    this.presets.value = names.includes(this.page.settings.preset) ? this.page.settings.preset : "";
  }

  async #use() {
    const chosen = this.kept.find((preset) => preset.name === this.presets.value);
    const settings = chosen ? { ...NOTHING_SET, ...chosen.settings } : { ...this.page.settings, preset: "" };
    this.form.draw(settings);
    await this.page.useSettings(settings);
  }

  async #keep() {
    const wrong = this.form.flush();
    if (wrong) return say(wrong, "error");
    await this.form.sent;
    const name = await ask({ title: "Keep these settings", label: "Name of the preset", value: this.presets.value, yes: "Keep" });
    if (!name) return;
    try {
      await call("PUT", `/presets/${encodeURIComponent(name)}`, { ...this.page.settings, preset: "" });
      await this.page.useSettings({ ...this.page.settings, preset: name });
      await this.#load();
      say(`The preset “${name}” is kept.`);
    } catch (refusal) {
      say(refusal.message, "error");
    }
  }

  async #delete() {
    const name = this.presets.value;
    if (!name) {
      say("Choose a preset first.");
      return;
    }
    if (!(await ask({ title: "Delete this preset?", text: `“${name}” will be gone; chats keep their settings.`, yes: "Delete", danger: true }))) return;
    try {
      await call("DELETE", `/presets/${encodeURIComponent(name)}`);
      await this.#load();
    } catch (refusal) {
      say(refusal.message, "error");
    }
  }
}
