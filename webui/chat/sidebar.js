// The list of conversations: live, searched, endless; and what can be done with each.

import { call } from "./api.js";
import { keepDraft } from "./composer.js";
import { ask, el, icon, iconButton, openMenu, say } from "./dom.js";
import { exported } from "./exports.js";

const PAGE = 50; // conversations of one request
const AFTER = 200; // milliseconds between the last key and the search

export class Sidebar {
  constructor(page) {
    this.page = page;
    this.chats = [];
    this.whole = false;
    this.search = el("input", {
      type: "search",
      id: "search",
      placeholder: "Search",
      title: "Search all conversations (Ctrl-K)",
      "aria-label": "Search conversations",
      oninput: () => this.#searched(),
      onkeydown: (event) => this.#key(event),
    });
    this.places = window.placeLinks(location.pathname);
    this.list = el("nav", { class: "chats", "aria-label": "Conversations" });
    this.picker = el("input", { type: "file", accept: ".json,application/json", hidden: true, onchange: () => this.#import() });
    const more = iconButton("more", "More for all conversations", (event) => this.#all(event.currentTarget), { "aria-haspopup": "menu" });
    this.node = el(
      "aside",
      { class: "sidebar", id: "sidebar", "aria-label": "Conversations" },
      el(
        "div",
        { class: "sidebar-head" },
        el("a", { class: "brand", href: "/", title: "A new chat" }, "together"),
        more,
        iconButton("close", "Close the list", () => page.showList(false), { class: "icon-button only-phone" }),
      ),
      el("a", { class: "button new-chat", href: "/", title: "A new chat (Ctrl-Shift-O)", id: "new-chat" }, icon("plus"), "New chat"),
      this.places,
      el("div", { class: "search" }, icon("search"), this.search),
      this.list,
      this.picker,
    );
    this.list.addEventListener("scroll", () => this.#more());
  }

  /** The list may have changed: what is shown is asked for again. */
  async refresh() {
    if (this.busy) {
      this.again = true;
      return;
    }
    this.busy = true;
    try {
      const searched = this.search.value.trim();
      const wanted = Math.max(PAGE, this.chats.length);
      let found = [];
      do {
        const before = found.at(-1)?.id ?? "";
        const part = await call("GET", `/conversations?${new URLSearchParams(searched ? { search: searched } : { before })}`);
        this.#warn(part.warning);
        found = [...found, ...part.conversations];
        this.whole = Boolean(searched) || part.conversations.length < PAGE;
      } while (!this.whole && found.length < wanted);
      if (searched === this.search.value.trim()) this.chats = found;
      this.#draw();
    } catch (refusal) {
      if (!this.chats.length) this.list.replaceChildren(el("p", { class: "faint" }, refusal.message));
    } finally {
      this.busy = false;
      if (this.again) {
        this.again = false;
        this.refresh();
      }
    }
  }

  #warn(text) {
    if (text && text !== this.warned) say(text, "error");
    this.warned = text;
  }

  async #more() {
    const left = this.list.scrollHeight - this.list.scrollTop - this.list.clientHeight;
    if (this.whole || this.busy || left > 400) return;
    this.busy = true;
    try {
      const part = await call("GET", `/conversations?${new URLSearchParams({ before: this.chats.at(-1).id })}`);
      this.chats = [...this.chats, ...part.conversations];
      this.whole = part.conversations.length < PAGE;
      this.#draw();
    } catch (refusal) {
      this.whole = true;
      say(refusal.message, "error");
    } finally {
      this.busy = false;
    }
  }

  #searched() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => {
      this.chats = [];
      this.refresh();
    }, AFTER);
  }

  #key(event) {
    if (event.key === "Escape" && this.search.value) {
      event.stopPropagation();
      this.search.value = "";
      this.#searched();
    }
    if (event.key === "ArrowDown" || event.key === "Enter") {
      event.preventDefault();
      this.list.querySelector("a")?.focus();
    }
  }

  // --- drawing --------------------------------------------------------------------------------------------------------

  #draw() {
    const searched = this.search.value.trim();
    const focused = document.activeElement?.closest?.("[data-chat]")?.dataset.chat;
    const nodes = [];
    let last = "";
    for (const chat of this.chats) {
      const group = searched ? "Found" : groupOf(chat);
      if (group !== last) nodes.push(el("h2", {}, group));
      last = group;
      nodes.push(this.#item(chat));
    }
    if (!nodes.length) {
      const text = searched ? "No conversation has these words." : "Your conversations will be listed here.";
      nodes.push(el("p", { class: "faint" }, text));
    }
    this.list.replaceChildren(...nodes);
    if (focused) this.list.querySelector(`[data-chat="${CSS.escape(focused)}"] a`)?.focus();
    this.mark();
  }

  #item(chat) {
    const button = iconButton("more", `More for ${chat.title}`, (event) => this.#menu(event.currentTarget, chat), { "aria-haspopup": "menu" });
    return el(
      "div",
      { class: "chat-item", data: { chat: chat.id } },
      el(
        "a",
        { href: `/chat/${chat.id}`, title: chat.title },
        chat.pinned && icon("pin"),
        el("span", { class: "title" }, chat.title),
        chat.hit && el("small", {}, chat.hit),
      ),
      button,
    );
  }

  /** Show which chat and which view is the current one. */
  mark(view = this.view) {
    this.view = view;
    window.markPlace(this.places, view);
    for (const item of this.list.querySelectorAll("[data-chat]")) {
      const is = item.dataset.chat === this.page.id;
      item.classList.toggle("current", is);
      const link = item.querySelector("a");
      if (is) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
  }

  // --- deeds ----------------------------------------------------------------------------------------------------------

  #menu(button, chat) {
    const path = `/conversations/${chat.id}`;
    openMenu(button, [
      ["Rename", () => this.#rename(chat)],
      [chat.pinned ? "Unpin" : "Pin", () => this.#do("PATCH", path, { pinned: !chat.pinned })],
      ["Duplicate", async () => {
        const made = await this.#do("POST", `${path}/duplicate`);
        if (made) this.page.go(`/chat/${made.summary.id}`);
      }],
      ["Export as JSON", () => exported(`${path}/export`)],
      ["Export as Markdown", `${path}/export?form=markdown`],
      ["Delete", () => this.#delete(chat), true],
    ]);
  }

  #all(button) {
    openMenu(button, [
      ["Import conversations", () => this.picker.click()],
      ["Export all", () => exported("/conversations/export")],
    ]);
  }

  async #rename(chat) {
    const title = await ask({ title: "Rename", label: "Title", value: chat.title, yes: "Rename" });
    if (title) await this.#do("PATCH", `/conversations/${chat.id}`, { title });
  }

  async #delete(chat) {
    const text = `“${chat.title}” with all its answers and files will be gone.`;
    if (!(await ask({ title: "Delete this conversation?", text, yes: "Delete", danger: true }))) return;
    const gone = await this.#do("DELETE", `/conversations/${chat.id}`);
    if (gone) keepDraft(chat.id, "", []);
    if (gone && this.page.id === chat.id) this.page.go("/");
  }

  async #do(method, path, body) {
    try {
      const done = await call(method, path, body);
      this.refresh();
      return done;
    } catch (refusal) {
      say(refusal.message, "error");
      return null;
    }
  }

  async #import() {
    const [file] = this.picker.files;
    this.picker.value = "";
    await imported(file, this.page);
  }
}

/** Read an exported file, and show the conversation if it is one. */
export async function imported(file, page) {
  try {
    const made = await call("POST", "/conversations/import", file, "application/octet-stream");
    say(made.length === 1 ? "One conversation was imported." : `${made.length} conversations were imported.`);
    if (made.length === 1) page.go(`/chat/${made[0].id}`);
  } catch (refusal) {
    say(refusal.message, "error");
  }
}

function groupOf(chat) {
  if (chat.pinned) return "Pinned";
  const midnight = new Date().setHours(0, 0, 0, 0) / 1000;
  const days = Math.ceil((midnight - chat.changed) / 86400);
  if (days <= 0) return "Today";
  if (days === 1) return "Yesterday";
  return days <= 7 ? "Last seven days" : new Date(chat.changed * 1000).toLocaleString("en", { month: "long", year: "numeric" });
}
