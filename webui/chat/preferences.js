// The view of settings for everything: looks, how new chats begin, and all conversations as files.

import { call } from "./api.js";
import { ask, el, say } from "./dom.js";
import { exported } from "./exports.js";
import { Reach } from "./reach.js";
import { NEW_CHATS, NOTHING_SET, SettingsForm } from "./settings.js";
import { imported } from "./sidebar.js";
import { ServerList } from "./tools.js";

const THEMES = [
  ["system", "As the system"],
  ["light", "Light"],
  ["dark", "Dark"],
];

export class Preferences {
  constructor(page) {
    this.page = page;
    this.title = "Settings";
    this.form = new SettingsForm(page, (settings) => this.#keep(settings));
    this.servers = new ServerList();
    this.picker = el("input", { type: "file", accept: ".json,application/json", hidden: true, onchange: () => this.#import() });
    this.reach = new Reach();
    this.themes = el("div", { class: "choices", role: "radiogroup", "aria-label": "Colours" }, THEMES.map(themeChoice));
    this.node = el(
      "section",
      { class: "preferences", "aria-label": "Settings", hidden: true },
      el(
        "div",
        { class: "preferences-inside" },
        el("section", {}, el("h2", {}, "Colours"), this.themes),
        el(
          "section",
          {},
          el("h2", {}, "New chats"),
          el("p", { class: "faint" }, "Each new chat begins with these settings. What is empty is as the model's author has it."),
          this.form.node,
        ),
        this.servers.node,
        el(
          "section",
          {},
          el("h2", {}, "All conversations"),
          el("p", { class: "faint" }, "They are kept by the app, on its machine. An export has them with their files, and can be imported again."),
          el(
            "div",
            { class: "row" },
            el("button", { type: "button", class: "button", title: "All conversations in one file", onclick: () => exported("/conversations/export") }, "Export"),
            el("button", { type: "button", class: "button", title: "Conversations of an exported file", onclick: () => this.picker.click() }, "Import"),
            el("button", { type: "button", class: "button danger", title: "Delete all conversations and presets", onclick: () => this.#deleteAll() }, "Delete everything"),
          ),
          this.picker,
        ),
        ...this.reach.nodes,
        el("section", {}, el("h2", {}, "Keyboard"), keys()),
      ),
    );
  }

  /** The models have changed. */
  news() {
    this.form.drawModels();
  }

  /** Another view is shown. */
  close() {
    const wrong = this.form.flush(true);
    if (wrong) say(wrong, "error");
  }

  async open() {
    this.form.draw(await newChatSettings());
    await Promise.all([this.form.look(), this.servers.open(), this.reach.look()]);
  }

  async #keep(settings) {
    const before = this.page.begins;
    this.page.begins = settings; // at once: a new chat may be the next thing that is shown
    try {
      await call("PUT", `/presets/${encodeURIComponent(NEW_CHATS)}`, { ...settings, preset: "" });
    } catch (refusal) {
      this.page.begins = before;
      say(refusal.message, "error");
    }
  }

  async #import() {
    const [file] = this.picker.files;
    this.picker.value = "";
    await imported(file, this.page);
  }

  async #deleteAll() {
    const text = "All conversations with their files, and all presets, will be gone. Export them first if you may want them.";
    if (!(await ask({ title: "Delete everything?", text, yes: "Delete everything", danger: true }))) return;
    try {
      await call("DELETE", "/conversations");
      this.page.begins = NOTHING_SET;
      this.form.draw(NOTHING_SET);
      say("Everything was deleted.");
    } catch (refusal) {
      say(refusal.message, "error");
    }
  }
}

/** The settings with which a new chat begins. */
export async function newChatSettings() {
  const kept = await call("GET", "/presets").catch(() => []);
  const found = kept.find((preset) => preset.name === NEW_CHATS);
  return found ? { ...NOTHING_SET, ...found.settings, preset: "" } : NOTHING_SET;
}

function themeChoice([value, text]) {
  let chosen = "system";
  try {
    chosen = localStorage.getItem("together.theme") ?? chosen;
  } catch {
    // a browser that keeps nothing
  }
  const choose = () => {
    try {
      localStorage.setItem("together.theme", value);
    } catch {
      say("This browser keeps no choice of colours for this page.", "error");
    }
    window.applyTheme();
  };
  return el("label", {}, el("input", { type: "radio", name: "theme", value, checked: value === chosen, onchange: choose }), text);
}

function keys() {
  const rows = [
    ["Enter", "sends the question"],
    ["Shift + Enter", "begins a new line"],
    ["Esc", "stops an answer, closes what is open"],
    ["↑", "in an empty question: edits the last one"],
    ["Ctrl + Enter", "keeps an answer that you edit"],
    ["Ctrl + K", "finds a conversation"],
    ["Ctrl + Shift + O", "begins a new chat"],
  ];
  return el("dl", { class: "keys" }, rows.map(([key, what]) => [el("dt", {}, el("kbd", {}, key)), el("dd", {}, what)]));
}
