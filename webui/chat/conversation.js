// The conversation that is shown: its turns by one stream, which survives a reload and comes back after a restart.

import { call, follow } from "./api.js";
import { el, iconButton, say } from "./dom.js";
import { TurnView } from "./turn.js";

const NEAR = 80; // pixels from the end within which the view follows the answer

export class ConversationView {
  /** `page`: app.js. */
  constructor(page) {
    this.page = page;
    this.chat = null;
    this.views = new Map();
    this.end = null;
    this.list = el("div", { class: "turns", role: "log", "aria-label": "Conversation", "aria-live": "polite" });
    this.empty = el("div", { class: "empty" });
    this.lost = el("div", { class: "lost", role: "status", hidden: true }, "The app does not answer. Trying again …"); // for all views, whose stream this is
    this.scroll = el("div", { class: "scroll", tabIndex: -1 }, this.empty, this.list);
    this.toEnd = iconButton("down", "To the end", () => this.#follow(true), { class: "icon-button to-end", hidden: true });
    this.node = el("section", { class: "conversation", "aria-label": "Chat" }, this.scroll, this.toEnd);
    this.scroll.addEventListener("scroll", () => this.#look());
    this.stuck = true;
    this.deeds = {
      again: (turn) => this.#order("POST", `turns/${turn.id}/again`),
      show: (leaf) => this.#order("PATCH", "", { leaf }),
      edited: (turn, text) => this.#order("POST", "turns", { parent: turn.parent, text, files: turn.said.files }),
      revised: (turn, text) => this.#order("POST", `turns/${turn.id}/edited`, { text }),
      word: (turn, word) => this.#order("POST", `turns/${turn.id}/call`, word),
      redraw: () => this.#draw(),
    };
  }

  /** Show conversation `id`; "" is a new one. The stream also tells of `machines` where they are shown. */
  open(id, machines = false) {
    this.end?.();
    this.end = null;
    this.id = id;
    this.chat = null;
    this.views.clear();
    this.list.replaceChildren();
    this.lost.hidden = true;
    this.stuck = true;
    this.#look();
    this.drawEmpty();
    const path = `/conversations/events?${new URLSearchParams({ chat: id, machines })}`;
    this.end = follow(path, (event) => this.#take(event), (state) => this.#state(state));
  }

  #take(event) {
    if (event.list || event.serving || event.machines) return this.page.news(event);
    if (event.gone) return this.#gone();
    if (event.chat) {
      for (const view of this.views.values()) view.pend(); // it is told again
      this.chat = event.chat;
      this.shown = event.shown;
      this.#draw();
      this.page.chatChanged(this.chat);
    } else if (event.pending) {
      this.views.get(event.pending.turn)?.pend(event.pending.progress);
    } else if (event.grown) {
      this.views.get(event.grown.turn)?.grow(event.grown, event.shown);
    }
    this.#follow();
  }

  async #state(state) {
    const { id } = this;
    if (state === "live") {
      this.lost.hidden = true;
      return;
    }
    try {
      await call("GET", id ? `/conversations/${id}` : "/version"); // gone, or was only this stream cut?
    } catch (refusal) {
      if (id !== this.id) return;
      if (refusal.status === 404) this.#gone();
      else this.lost.hidden = false;
    }
  }

  #gone() {
    this.end?.();
    say("This conversation is not here any more.");
    this.page.go("/");
  }

  get branch() {
    const byId = new Map((this.chat?.turns ?? []).map((turn) => [turn.id, turn]));
    const found = [];
    for (let at = this.chat?.leaf; at; at = byId.get(at)?.parent) if (byId.has(at)) found.unshift(byId.get(at));
    return found;
  }

  /** The ids of answers that are being written in the shown branch. */
  get writing() {
    return this.branch.filter((turn) => turn.state === "writing").map((turn) => turn.id);
  }

  #draw() {
    const { turns, files } = this.chat;
    const kept = new Map(files.map((file) => [file.id, file]));
    const branch = this.branch;
    const made = new Map(branch.flatMap((turn) => turn.said.calls).map((each) => [each.id, each]));
    const nodes = branch.map((turn) => {
      if (!this.views.has(turn.id)) this.views.set(turn.id, new TurnView(this.deeds));
      const view = this.views.get(turn.id);
      if (!view.node.querySelector(".edit") || view.drawn === "")
        view.draw(turn, this.shown[turn.id], turns.filter((each) => each.parent === turn.parent), kept, made.get(turn.said.call_id));
      return view.node;
    });
    const same = nodes.length === this.list.children.length && nodes.every((node, at) => node === this.list.children[at]);
    if (!same) this.list.replaceChildren(...nodes);
    this.drawEmpty();
  }

  drawEmpty() {
    const nothing = !this.id || (this.chat !== null && this.branch.length === 0);
    this.empty.hidden = !nothing;
    if (nothing && !this.empty.firstChild) this.empty.append(...this.page.welcome());
  }

  async #order(method, path, body) {
    try {
      if (method === "POST") await this.page.choose();
      await call(method, `/conversations/${this.id}${path && "/"}${path}`, body);
      this.stuck = true;
      return true;
    } catch (refusal) {
      say(refusal.message, "error");
      return false;
    }
  }

  async stop() {
    for (const turn of this.writing) await call("POST", `/conversations/${this.id}/turns/${turn}/stop`).catch(() => null);
  }

  editLast() {
    const last = this.branch.filter((turn) => turn.role === "user").at(-1);
    if (last) this.views.get(last.id).edit();
    return Boolean(last);
  }

  // --- scrolling ------------------------------------------------------------------------------------------------------

  #look() {
    const left = this.scroll.scrollHeight - this.scroll.scrollTop - this.scroll.clientHeight;
    this.stuck = left < NEAR;
    this.toEnd.hidden = this.stuck;
  }

  #follow(now = false) {
    if (now || this.stuck) this.scroll.scrollTop = this.scroll.scrollHeight;
    this.#look();
  }
}
