// The question that is being written: its text and files are kept by conversation in this browser until it is sent.

import { call } from "./api.js";
import { el, icon, iconButton, say } from "./dom.js";
import { count } from "./turn.js";

const PICTURES = "image/";
const TALLEST = 240; // pixels
const FULL = 0.9; // of the context

export class Composer {
  constructor(page) {
    this.page = page;
    this.id = "";
    this.files = [];
    this.field = el("textarea", {
      id: "question",
      rows: 1,
      placeholder: "Ask something",
      "aria-label": "Your question",
      oninput: () => this.#changed(),
      onkeydown: (event) => this.#key(event),
      onpaste: (event) => this.#pasted(event),
    });
    this.picker = el("input", { type: "file", multiple: true, hidden: true, onchange: () => this.#picked() });
    this.send = iconButton("send", "Send (Enter)", () => this.submit(), { class: "icon-button send", id: "send" });
    this.stop = iconButton("stop", "Stop (Esc)", () => page.stop(), { class: "icon-button stop", id: "stop", hidden: true });
    this.chips = el("div", { class: "chips" });
    this.notice = el("div", { class: "notice", role: "status", hidden: true });
    this.meter = el("div", { class: "context" });
    this.node = el(
      "form",
      { class: "composer", onsubmit: (event) => event.preventDefault() },
      this.notice,
      el(
        "div",
        { class: "box" },
        this.chips,
        this.field,
        el(
          "div",
          { class: "box-row" },
          iconButton("clip", "Add a text, a PDF or a picture", () => this.picker.click(), { id: "attach" }),
          this.picker,
          this.meter,
          this.stop,
          this.send,
        ),
      ),
    );
  }

  // --- drafts ---------------------------------------------------------------------------------------------------------

  open(id) {
    this.id = id;
    const kept = readDraft(id);
    this.field.value = kept.text;
    this.files = kept.files;
    this.#drawFiles();
    this.#fit();
  }

  #changed() {
    this.#fit();
    keepDraft(this.id, this.field.value, this.files);
  }

  #fit() {
    this.field.style.height = "auto";
    this.field.style.height = `${Math.min(this.field.scrollHeight, TALLEST)}px`;
  }

  fill(text) {
    this.field.value = text;
    this.#changed();
    this.field.focus();
  }

  // --- keys -----------------------------------------------------------------------------------------------------------

  #key(event) {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      this.submit();
    } else if (event.key === "ArrowUp" && !this.field.value && this.page.editLast()) {
      event.preventDefault();
    }
  }

  async submit() {
    const text = this.field.value.trim();
    if (this.sending || (!text && !this.files.length)) return;
    this.sending = true;
    this.send.disabled = true;
    try {
      const files = this.files.map((file) => file.id);
      const sent = await this.page.submit(text, files); // a first question has an id only now
      if (!sent) return;
      keepDraft(sent, "", []);
      if (this.id === sent) this.open(sent); // else another chat is shown by now
    } catch (refusal) {
      say(refusal.message, "error");
    } finally {
      this.sending = false;
      this.send.disabled = false;
      this.field.focus();
    }
  }

  // --- files ----------------------------------------------------------------------------------------------------------

  #picked() {
    this.add([...this.picker.files]);
    this.picker.value = "";
  }

  #pasted(event) {
    const files = [...event.clipboardData.files];
    if (!files.length) return;
    event.preventDefault();
    this.add(files);
  }

  /** Files go to the chat that is shown now, also where another one is shown before they are read. */
  async add(files) {
    let id = "";
    for (const file of files) {
      if (file.type.startsWith(PICTURES) && !this.page.model()?.sees) {
        say(`${this.page.model()?.name ?? "This model"} sees no pictures; add a text, or choose a model that sees.`, "error");
        continue;
      }
      const chip = el("span", { class: "chip busy" }, icon("file"), el("span", {}, file.name), el("small", {}, "reading …"));
      this.chips.append(chip);
      try {
        id ||= await this.page.here(); // files belong to a conversation
        const path = `/conversations/${id}/files?name=${encodeURIComponent(file.name)}`;
        const made = await call("POST", path, file, "application/octet-stream");
        if (this.id === id) this.files.push(made);
        else keepMore(id, made);
      } catch (refusal) {
        say(`${file.name}: ${refusal.message}`, "error");
      }
      keepDraft(this.id, this.field.value, this.files);
      this.#drawFiles();
    }
    this.field.focus();
  }

  #drawFiles() {
    this.chips.replaceChildren(
      ...this.files.map((file) =>
        el(
          "span",
          { class: "chip" },
          icon("file"),
          el("span", {}, file.name),
          el("small", {}, file.kind.startsWith(PICTURES) ? "picture" : file.tokens === null ? "text" : `${count(file.tokens)} tokens`),
          iconButton("close", `Leave out ${file.name}`, () => this.#leaveOut(file)),
        ),
      ),
    );
  }

  #leaveOut(file) {
    this.files = this.files.filter((each) => each !== file);
    this.#drawFiles();
    this.#changed();
  }

  // --- what is known of the model -------------------------------------------------------------------------------------

  /** `writing`: an answer can be stopped; `used`: tokens of the shown branch; `notice`: elements that say what is wrong. */
  draw({ writing, used, context, notice }) {
    this.stop.hidden = !writing;
    this.send.hidden = writing;
    this.notice.hidden = !notice;
    if (notice) this.notice.replaceChildren(...notice);
    const part = context ? Math.min(1, used / context) : 0;
    if (!used || !context) {
      this.meter.replaceChildren();
      return;
    }
    const bar = el("meter", { min: 0, max: context, value: Math.min(used, context), "aria-label": "Context in use" });
    const text = `${count(used)} of ${count(context)} tokens`;
    const full = `${text}: ${part < 1 ? "nearly full" : "full"}; begin a new chat, edit an earlier question, or load the model with a larger context`;
    this.meter.classList.toggle("full", part >= FULL);
    this.meter.title = "What the model has read and written here, of what it can hold";
    this.meter.replaceChildren(
      bar,
      el("span", {}, part >= FULL ? full : text),
    );
  }
}

// --- this browser's memory --------------------------------------------------------------------------------------------

const place = (id) => `together.draft.${id || "new"}`;

function readDraft(id) {
  try {
    const kept = JSON.parse(localStorage.getItem(place(id)) ?? "{}");
    return { text: String(kept.text ?? ""), files: Array.isArray(kept.files) ? kept.files : [] };
  } catch {
    return { text: "", files: [] };
  }
}

function keepMore(id, file) {
  const { text, files } = readDraft(id);
  keepDraft(id, text, [...files, file]);
}

export function keepDraft(id, text, files) {
  try {
    if (text || files.length) localStorage.setItem(place(id), JSON.stringify({ text, files }));
    else localStorage.removeItem(place(id));
  } catch {
    // a full or forbidden memory: the draft lives as long as the page
  }
}
