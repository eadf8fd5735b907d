// How others come in: the join code for machines, a link with a QR code for a phone, and the way out for this browser.

import { call, sentence } from "./api.js";
import { ask, copied, el, iconButton, say } from "./dom.js";

const SVG = "http://www.w3.org/2000/svg";
const MARGIN = 4; // light squares around a QR code

export class Reach {
  constructor() {
    this.closed = el("p", { id: "closed" });
    this.code = el("button", { type: "button", class: "button", id: "show-code", title: "The code with which other machines join this one", "aria-expanded": "false", onclick: () => this.#toggle() }, "Show the join code");
    const phone = el("button", { type: "button", class: "button", id: "add-phone", title: "A link with a key of its own, to scan or to send", onclick: () => this.#phone() }, "Add a phone");
    this.shown = el("div", { class: "invitation", hidden: true });
    this.open = el(
      "div",
      {},
      el("p", { class: "faint" }, "A machine that joins runs layers of your models. A phone or another computer opens this page with a key of its own."),
      el("div", { class: "row" }, this.code, phone),
      this.shown,
    );
    this.invite = el("section", { hidden: true }, el("h2", {}, "Other machines and phones"), this.closed, this.open);
    this.leave = el(
      "section",
      { hidden: true },
      el("h2", {}, "This browser"),
      el("p", { class: "faint" }, "It came in by a key. What is written here belongs to that key, and whoever has it can read it."),
      el("a", { class: "button", href: "/logout", title: "This browser forgets its key" }, "Log out"),
    );
    this.nodes = [this.invite, this.leave];
  }

  /** What this browser may see of it; codes and links stay hidden until they are asked for. */
  async look() {
    this.#show();
    const { here, key, closed } = await call("GET", "/reach").catch(() => ({ here: false, key: false, closed: "" }));
    this.invite.hidden = !here;
    this.leave.hidden = !key;
    this.closed.hidden = !closed;
    this.closed.textContent = sentence(closed);
    this.open.hidden = Boolean(closed);
  }

  #show(...nodes) {
    this.shown.replaceChildren(...nodes);
    this.shown.hidden = nodes.length === 0;
    this.code.setAttribute("aria-expanded", "false");
    this.code.textContent = "Show the join code";
  }

  async #toggle() {
    if (this.code.getAttribute("aria-expanded") === "true") return this.#show();
    try {
      const { code, command } = await call("GET", "/reach/machines");
      this.#show(
        copiable("Join code", code),
        copiable("On the other machine, in the folder of this program", command),
        el("p", { class: "faint" }, "Who has the code is trusted with everything: such a machine may read what your models are asked."),
      );
      this.code.setAttribute("aria-expanded", "true");
      this.code.textContent = "Hide the join code";
    } catch (refusal) {
      say(refusal.message, "error");
    }
  }

  async #phone() {
    const text = "It gets a key of its own, which you can revoke later: python3 launch.py keys revoke NAME";
    const name = await ask({ title: "Add a phone", text, label: "Name of its key", value: "phone", yes: "Make the link" });
    if (!name) return;
    try {
      const { link, rows } = await call("POST", "/reach/phones", { name });
      this.#show(
        qrCode(rows),
        copiable("Link", link),
        el("p", { class: "faint" }, "This is shown once. The phone must be on the same network; its browser may warn of the page until it knows the app's authority."),
        el("button", { type: "button", class: "button", onclick: () => this.#show() }, "Hide the link"),
      );
    } catch (refusal) {
      say(refusal.message, "error");
    }
  }
}

function copiable(label, text) {
  return el(
    "div",
    { class: "copiable" },
    el("b", {}, label),
    el("code", {}, text),
    iconButton("copy", `Copy: ${label}`, (event) => copied(text, event.currentTarget)),
  );
}

/** `rows`: a letter for each square, 1 where it is dark. */
function qrCode(rows) {
  const made = document.createElementNS(SVG, "svg");
  const size = rows.length + 2 * MARGIN;
  made.setAttribute("viewBox", `${-MARGIN} ${-MARGIN} ${size} ${size}`);
  made.setAttribute("role", "img");
  made.setAttribute("aria-label", "QR code of the link");
  made.classList.add("qr");
  const path = document.createElementNS(SVG, "path");
  const dark = rows.map((row, y) => [...row.matchAll(/1+/g)].map((run) => `M${run.index} ${y}h${run[0].length}v1h-${run[0].length}z`).join(""));
  path.setAttribute("d", dark.join(""));
  made.append(path);
  return made;
}
