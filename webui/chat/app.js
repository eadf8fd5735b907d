// The page: which view is shown, what the models are, and how its parts know of one another.

import { call, sentence } from "./api.js";
import { Composer, keepDraft } from "./composer.js";
import { ConversationView } from "./conversation.js";
import { closeOpen, el, iconButton, say } from "./dom.js";
import { MachinesView } from "./machines.js";
import { ModelsView } from "./models.js";
import { newChatSettings, Preferences } from "./preferences.js";
import { NOTHING_SET, SettingsDrawer } from "./settings.js";
import { Sidebar } from "./sidebar.js";


class Page {
  constructor() {
    this.serving = { models: [], reason: "" };
    this.begins = NOTHING_SET; // settings of a new chat
    this.drafted = NOTHING_SET; // those of the one that is not there yet
    this.sidebar = new Sidebar(this);
    this.conversation = new ConversationView(this);
    this.composer = new Composer(this);
    this.drawer = new SettingsDrawer(this);
    this.views = { machines: new MachinesView(this), models: new ModelsView(this), settings: new Preferences(this) }; // beside the chat, by their address
    this.title = el("h1", { class: "chat-title" }, "New chat");
    this.served = el("button", { type: "button", class: "served", title: "Which model answers; opens the settings of this chat", onclick: () => this.showSettings(true) });
    this.list = iconButton("menu", "Conversations", () => this.showList(), { id: "show-list", "aria-controls": "sidebar" });
    this.gear = iconButton("gear", "Settings of this chat", () => this.showSettings(), { id: "show-settings", "aria-controls": "drawer" });
    this.shade = el("div", { class: "shade", onclick: () => (this.showList(false), this.showSettings(false)) });
    this.main = el(
      "main",
      { id: "main", tabIndex: -1 },
      el("header", { class: "top" }, this.list, this.title, this.served, this.gear),
      this.conversation.lost,
      this.conversation.node,
      this.composer.node,
      Object.values(this.views).map((view) => view.node),
    );
    document.getElementById("app").replaceChildren(this.sidebar.node, this.main, this.drawer.node, this.shade);
    this.showList(!this.narrow);
    this.#listen();
  }

  get narrow() {
    return innerWidth < 800;
  }

  #listen() {
    document.addEventListener("click", (event) => this.#clicked(event));
    document.addEventListener("keydown", (event) => this.#key(event));
    addEventListener("popstate", () => this.show());
    this.main.addEventListener("dragover", (event) => {
      event.preventDefault();
      if (this.id === null) return;
      this.main.classList.add("dropping");
    });
    this.main.addEventListener("dragleave", () => this.main.classList.remove("dropping"));
    this.main.addEventListener("drop", (event) => {
      event.preventDefault();
      this.main.classList.remove("dropping");
      if (this.id !== null) this.composer.add([...event.dataTransfer.files]);
    });
  }

  news(event) {
    if (event.list) this.sidebar.refresh();
    if (event.machines) {
      this.machines = event.machines;
      this.views.machines.news();
    }
    if (!event.serving) return;
    this.serving = event.serving;
    this.draw();
    this.conversation.drawEmpty();
    this.drawer.form.drawModels();
    for (const view of Object.values(this.views)) view.news();
  }

  // --- places ---------------------------------------------------------------------------------------------------------

  go(path) {
    if (path !== location.pathname) history.pushState(null, "", path);
    this.show();
  }

  show() {
    const [, first, second = ""] = location.pathname.split("/");
    const shown = this.views[first];
    this.showSettings(false); // what was changed there belongs to the chat that was shown
    closeOpen();
    this.id = shown ? null : second; // null: no chat is shown
    for (const node of [this.conversation.node, this.composer.node, this.served, this.gear]) node.hidden = Boolean(shown);
    for (const view of Object.values(this.views)) {
      view.node.hidden = view !== shown;
      if (view !== shown) view.close();
    }
    document.querySelector(".skip").textContent = `Skip to the ${shown ? shown.title.toLowerCase() : "question"}`;
    if (this.narrow) this.showList(false);
    this.conversation.open(this.id ?? "", shown === this.views.machines);
    if (shown) {
      shown.open();
    } else {
      this.drafted = this.begins;
      this.composer.open(this.id);
      if (!this.narrow) this.composer.field.focus();
    }
    this.#name(shown ? shown.title : this.id ? "…" : "New chat");
    this.sidebar.mark(shown ? `/${first}` : "/");
    this.draw();
  }

  #name(title) {
    this.title.textContent = title;
    this.title.title = title;
    document.title = title === "New chat" || title === "…" ? "together" : `${title} – together`;
  }

  #clicked(event) {
    const link = event.target.closest("a[href]");
    if (link?.className === "skip") {
      event.preventDefault(); // the address stays that of the view
      (this.id === null ? this.main : this.composer.field).focus();
    }
    if (!link || !this.#isView(link.getAttribute("href")) || event.ctrlKey || event.metaKey || event.shiftKey || event.button !== 0) return;
    event.preventDefault();
    this.go(link.getAttribute("href"));
  }

  /** Whether this page shows what is at an address. */
  #isView(address) {
    return address === "/" || address.startsWith("/chat/") || Object.keys(this.views).some((name) => address === `/${name}`);
  }

  #key(event) {
    const control = event.ctrlKey || event.metaKey;
    if (control && event.key.toLowerCase() === "k") {
      event.preventDefault();
      this.showList(true);
      this.sidebar.search.focus();
      this.sidebar.search.select();
    } else if (control && event.shiftKey && event.key.toLowerCase() === "o") {
      event.preventDefault();
      this.go("/");
    } else if (event.key === "Escape" && !document.querySelector("dialog[open]")) {
      if (this.narrow && this.listed) this.showList(false);
      else if (!this.drawer.node.hidden) this.showSettings(false);
      else this.stop();
    }
  }

  showList(open = !this.listed) {
    this.listed = open;
    document.body.classList.toggle("listed", open);
    this.sidebar.node.inert = !open;
    this.list.setAttribute("aria-expanded", String(open));
    if (open && this.narrow) this.sidebar.search.focus();
  }

  showSettings(open = this.drawer.node.hidden) {
    const was = !this.drawer.node.hidden;
    this.drawer.node.hidden = !open;
    document.body.classList.toggle("drawn", open);
    this.gear.setAttribute("aria-expanded", String(open));
    if (open && !was) {
      this.drawer.open();
      this.drawer.node.querySelector("select").focus();
    } else if (was && !open) {
      const wrong = this.drawer.form.flush(true);
      if (wrong) say(wrong, "error");
      this.gear.focus();
    }
  }

  // --- the chat that is shown -----------------------------------------------------------------------------------------

  chatChanged(chat) {
    this.#name(chat.summary.title);
    this.drawer.form.draw(chat.settings);
    this.draw();
  }

  get settings() {
    return this.conversation.chat?.settings ?? this.drafted;
  }

  /** The model that answers by `name`, by default that of the chat. */
  model(name = this.settings.model) {
    const { models } = this.serving;
    return name ? models.find((model) => model.name === name) : (models.find((model) => model.ready) ?? models[0]);
  }

  async useSettings(settings) {
    if (!this.id) {
      this.drafted = settings;
      this.draw();
      return;
    }
    try {
      const changed = await call("PATCH", `/conversations/${this.id}`, { settings });
      if (this.conversation.chat?.summary.id === changed.summary.id) this.conversation.chat.settings = changed.settings;
      this.draw();
    } catch (refusal) {
      say(refusal.message, "error");
    }
  }

  /** Where several models serve and none was chosen, the first one answers. Throws where a setting is wrong. */
  async choose() {
    const wrong = this.drawer.form.flush();
    if (wrong) throw new Error(wrong);
    await this.drawer.form.sent;
    if (!this.settings.model && this.serving.models.length > 1) await this.useSettings({ ...this.settings, model: this.model().name });
  }

  /** The id of the chat that is shown; a new one is made where there is none. */
  async here() {
    if (this.id) return this.id;
    const { text, files } = { text: this.composer.field.value, files: this.composer.files };
    const made = await call("POST", "/conversations", { settings: this.settings });
    this.id = made.summary.id;
    keepDraft("", "", []);
    keepDraft(this.id, text, files);
    this.composer.id = this.id;
    history.pushState(null, "", `/chat/${this.id}`);
    this.conversation.open(this.id);
    this.sidebar.mark();
    return this.id;
  }

  /** Send a question; the id of its chat, "" where an answer is still being written. */
  async submit(text, files) {
    if (this.conversation.writing.length) {
      say("An answer is being written; stop it first (Esc).");
      return "";
    }
    await this.choose();
    const id = await this.here();
    const parent = this.conversation.chat?.leaf ?? "";
    this.conversation.stuck = true;
    await call("POST", `/conversations/${id}/turns`, { parent, text, files });
    return id;
  }

  stop() {
    this.conversation.stop();
  }

  editLast() {
    return this.conversation.editLast();
  }

  draw() {
    const model = this.model();
    const { branch, writing } = this.conversation;
    const last = branch.filter((turn) => turn.said.figures).at(-1)?.said.figures;
    const used = last ? last.prompt_tokens + last.tokens : 0;
    this.served.textContent = this.settings.model || model?.name || "No model";
    this.served.classList.toggle("away", !model?.ready);
    this.composer.draw({ writing: writing.length > 0, used, context: model?.context ?? 0, notice: this.#notice(model) });
  }

  /** Why nothing can answer, and what to do. */
  #notice(model) {
    if (model?.ready || (!this.serving.reason && !this.serving.models.length)) return null;
    const machines = el("a", { href: "/machines", title: "What the machines do, and what can be loaded" }, "Open Machines");
    if (this.serving.reason) return [el("span", {}, sentence(this.serving.reason)), " ", machines];
    const text = model ? sentence(model.sentence) : `${this.settings.model} does not serve now; choose another model in the settings of this chat.`;
    return [el("span", {}, text), " ", machines];
  }

  /** What stands where nothing was said yet. */
  welcome() {
    const examples = JSON.parse(document.body.dataset.examples);
    return [
      el("h2", {}, "What do you want to know?"),
      el("p", { class: "faint" }, "Your question passes through all layers, machine by machine."),
      el(
        "div",
        { class: "examples" },
        examples.map((text) => el("button", { type: "button", class: "example", title: "Ask this", onclick: () => (this.composer.fill(text), this.composer.submit()) }, text)),
      ),
    ];
  }
}

const page = new Page();
page.begins = await newChatSettings();
page.show();
