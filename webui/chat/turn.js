// One turn of a conversation: a question or an answer with its versions, figures and what can be done with it.

import { copied, el, icon, iconButton, rendered } from "./dom.js";
import { sentence } from "./api.js";
import { callCard } from "./tools.js";

const THOUGHT = { writing: "Thinking…", done: "Thought" };

/** Seconds as a person reads them. */
export function seconds(value) {
  if (value < 1) return `${Math.round(value * 1000)} ms`;
  return value < 60 ? `${value.toFixed(1)} s` : `${Math.floor(value / 60)} min ${Math.round(value % 60)} s`;
}

/** `deeds`: what the buttons do, of conversation.js. */
export class TurnView {
  constructor(deeds) {
    this.deeds = deeds;
    this.node = el("article", { class: "turn" });
    this.drawn = "";
    this.blocks = [];
    this.tailText = "";
  }

  /** Draw the turn as it is now; nothing is touched that stayed the same. */
  draw(turn, shown, versions, files, made) {
    const now = JSON.stringify([turn, shown, versions.map((each) => each.id), [...files], made]);
    if (now === this.drawn) return;
    this.drawn = now;
    this.turn = turn;
    this.node.className = `turn ${turn.role}`;
    this.node.dataset.turn = turn.id;
    this.node.dataset.state = turn.state;
    if (turn.role === "user") this.#question(versions, files);
    else if (turn.role === "tool") this.#call(made);
    else this.#answer(shown, versions);
  }

  #question(versions, files) {
    const { said } = this.turn;
    this.node.setAttribute("aria-label", "Question");
    this.node.replaceChildren(
      el(
        "div",
        { class: "bubble" },
        said.files.length > 0 && el("div", { class: "files" }, said.files.map((id) => fileLink(id, files.get(id)))),
        el("div", { class: "plain" }, said.text),
      ),
      el(
        "div",
        { class: "deeds" },
        this.#versions(versions),
        iconButton("copy", "Copy this question", (event) => copied(said.text, event.currentTarget)),
        iconButton("edit", "Edit this question and ask again", () => this.edit()),
      ),
    );
  }

  /** A call and its result; `made` is the call as the answer before has it. */
  #call(made) {
    this.node.setAttribute("aria-label", "Call of a tool");
    this.node.replaceChildren(callCard(this.turn, made, (word) => this.deeds.word(this.turn, word)));
  }

  #answer(shown, versions) {
    const { said, state } = this.turn;
    const writing = state === "writing";
    this.node.setAttribute("aria-label", "Answer");
    this.node.setAttribute("aria-busy", String(writing));
    const open = this.thoughts?.open ?? false;
    this.thoughtText = el("div", { class: "thought plain" }, said.reasoning);
    this.thoughtTitle = el("summary", {}, this.#thoughtTitle());
    this.thoughts = el("details", { class: "thoughts", open, hidden: !said.reasoning }, this.thoughtTitle, this.thoughtText);
    this.blocks = (shown?.blocks ?? []).map(blockOf);
    this.tailText = shown?.tail ?? "";
    this.tail = el("div", { class: "tail plain", hidden: !this.tailText }, this.tailText);
    this.text = el("div", { class: "text" }, this.blocks, this.tail);
    this.where = el("span", { class: "where" });
    this.waits = el("div", { class: "waits", hidden: !writing || Boolean(said.text || said.reasoning), "aria-live": "off" }, el("i"), el("i"), el("i"), this.where);
    this.pend(this.progress);
    this.calls = el("div", { class: "calls" }, said.calls.map(callOf));
    this.node.replaceChildren(
      el("div", { class: "who" }, said.model || "Answer"),
      this.thoughts,
      this.text,
      this.calls,
      this.waits,
      ...(writing ? [] : [this.#ending(), this.#below(versions)].filter(Boolean)),
    );
    this.node.classList.toggle("writing", writing);
  }

  /** Say where an answer without text is: its place in the queue, or how much of its prompt was read. */
  pend(progress = null) {
    this.progress = progress;
    if (!this.where) return;
    const { place = 0, read = 0, prompt = 0 } = progress ?? {};
    if (place) this.where.replaceChildren(place === 1 ? "Next in the queue" : `Place ${count(place)} in the queue`);
    else if (prompt) this.where.replaceChildren(el("progress", { max: prompt, value: read, "aria-label": "Prompt read" }), `Reading: ${count(read)} of ${count(prompt)} tokens`);
    else this.where.replaceChildren();
  }

  /** Add what an answer grew by; `shown` is null where only the open end did. */
  grow(grown, shown) {
    const { said } = this.turn;
    this.drawn = "";
    if (grown.reasoning && !said.reasoning) this.began = performance.now();
    if (grown.text && !said.text && this.began) said.thought = (performance.now() - this.began) / 1000;
    said.text += grown.text;
    said.reasoning += grown.reasoning;
    this.thoughtTitle.textContent = this.#thoughtTitle();
    if (grown.calls.length) this.calls.replaceChildren(...grown.calls.map(callOf));
    this.waits.hidden = true;
    if (grown.reasoning) {
      this.thoughts.hidden = false;
      this.thoughtText.append(grown.reasoning);
    }
    if (shown) {
      const more = shown.blocks.map(blockOf);
      this.blocks.push(...more);
      this.tail.before(...more);
    }
    this.tailText = shown ? shown.tail : this.tailText + grown.text;
    this.tail.textContent = this.tailText.trimStart();
    this.tail.hidden = !this.tail.textContent;
  }

  #thoughtTitle() {
    const { said, state } = this.turn;
    if (state === "writing" && !said.text) return THOUGHT.writing;
    return said.thought ? `${THOUGHT.done} for ${seconds(said.thought)}` : THOUGHT.done;
  }

  /** Why it ended early, and what to do. */
  #ending() {
    const { said, state } = this.turn;
    const early = { stopped: "Stopped.", cut: "The app ended while this was written.", failed: "" }[state];
    if (early === undefined && !said.note) return null;
    const text = [early, sentence(said.note)].filter(Boolean).join(" ");
    const again = el("button", { type: "button", class: "button small", onclick: () => this.deeds.again(this.turn) }, "Try again");
    const line = el("div", { class: `ending ${state}` }, icon(state === "failed" ? "warn" : "stop"), el("span", {}, text));
    if (state !== "done") line.append(again);
    return line;
  }

  #below(versions) {
    return el(
      "div",
      { class: "deeds" },
      this.#versions(versions),
      iconButton("copy", "Copy this answer", (event) => copied(this.turn.said.text, event.currentTarget)),
      iconButton("again", "Answer again", () => this.deeds.again(this.turn)),
      iconButton("edit", "Edit this answer", () => this.edit()),
      this.turn.said.edited ? el("span", { class: "figures" }, "Edited by hand") : figuresOf(this.turn.said.figures),
    );
  }

  #versions(versions) {
    if (versions.length < 2) return null;
    const at = versions.findIndex((each) => each.id === this.turn.id);
    const to = (step) => this.deeds.show(versions[at + step].id);
    return el(
      "span",
      { class: "versions", role: "group", "aria-label": "Versions" },
      iconButton("left", "The version before", () => to(-1), { disabled: at === 0 }),
      el("span", {}, `${at + 1}/${versions.length}`),
      iconButton("right", "The next version", () => to(1), { disabled: at === versions.length - 1 }),
    );
  }

  /** Change a turn in its place; sent, it becomes another version. A question is answered again. */
  edit() {
    const { role, said } = this.turn;
    const question = role === "user";
    const field = el("textarea", { class: "edit", value: said.text, "aria-label": question ? "The question" : "The answer", rows: question ? 3 : 10 });
    const away = () => {
      this.drawn = "";
      this.deeds.redraw();
      this.node.querySelector("[title^=Edit]")?.focus();
    };
    let sending = false; // a second Enter is not a second version
    const send = async () => {
      if (sending) return;
      sending = true;
      const sent = question ? this.deeds.edited(this.turn, field.value.trim()) : this.deeds.revised(this.turn, field.value);
      if (await sent) this.drawn = "";
      else sending = false;
    };
    field.addEventListener("keydown", (event) => {
      const sends = question ? !event.shiftKey : event.ctrlKey || event.metaKey; // an answer has lines of its own
      if (event.key === "Enter" && sends && !event.isComposing) (event.preventDefault(), send());
      if (event.key === "Escape") (event.stopPropagation(), away());
    });
    this.node.replaceChildren(
      el(
        "div",
        { class: "bubble editing" },
        field,
        el(
          "div",
          { class: "dialog-buttons" },
          el("button", { type: "button", class: "button small", onclick: away }, "Cancel"),
          el("button", { type: "button", class: "button small primary", onclick: send }, question ? "Send" : "Keep"),
        ),
      ),
    );
    field.focus();
    field.setSelectionRange(field.value.length, field.value.length);
  }
}

function blockOf(block) {
  return block.html === null ? el("div", { class: "block plain" }, block.text) : rendered(block.html);
}

function callOf(call) {
  return el("div", { class: "call" }, el("b", {}, call.name), " ", el("code", {}, call.arguments));
}

function fileLink(id, file) {
  const name = file?.name ?? "a file";
  const picture = file?.kind.startsWith("image/");
  const given = { class: "file", href: `/files/${id}`, target: "_blank", rel: "noopener", title: `Open ${name}` };
  if (picture) return el("a", { ...given, class: "picture" }, el("img", { src: `/files/${id}`, alt: name, loading: "lazy" }));
  return el("a", given, icon("file"), el("span", {}, name), file?.tokens && el("small", {}, `${count(file.tokens)} tokens`));
}

export function count(value) {
  return value.toLocaleString("en");
}

function figuresOf(figures) {
  if (!figures) return null;
  const parts = [`${count(figures.tokens)} ${figures.tokens === 1 ? "token" : "tokens"}`];
  if (figures.tokens_per_s) parts.push(`${figures.tokens_per_s.toFixed(1)} tokens/s`);
  parts.push(`first after ${seconds(figures.first_token)}`);
  if (figures.machines.length) parts.push(figures.machines.join(" → "));
  const more = [`${count(figures.prompt_tokens)} tokens of prompt, ${count(figures.cached_tokens)} of them known already`];
  if (figures.reasoning_tokens) more.push(`${count(figures.reasoning_tokens)} tokens of thinking`);
  if (figures.queued > 0.05) more.push(`waited ${seconds(figures.queued)}`);
  more.push(`${seconds(figures.total)} in all`);
  return el("span", { class: "figures", title: more.join("; ") }, parts.join(" · "));
}
