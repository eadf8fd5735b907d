// Elements without markup: whatever a model, a file or another machine says is a text node.

const SVG = "http://www.w3.org/2000/svg";
const ICONS = {
  menu: "M4 6h16M4 12h16M4 18h16",
  plus: "M12 5v14M5 12h14",
  search: "M11 4a7 7 0 1 0 0 14 7 7 0 0 0 0-14zM20 20l-4-4",
  more: "M5 12h.01M12 12h.01M19 12h.01",
  pin: "M9 4h6l-1 6 3 3v2H7v-2l3-3zM12 15v5",
  gear: "M4 7h9M17 7h3M4 17h3M11 17h9M15 5v4M9 15v4",
  send: "M12 19V5M6 11l6-6 6 6",
  stop: "M7 7h10v10H7z",
  clip: "M20 11l-8.5 8.5a5 5 0 0 1-7-7L13 4a3.3 3.3 0 0 1 4.7 4.7l-8.5 8.4a1.6 1.6 0 0 1-2.3-2.3L14.5 7.5",
  copy: "M9 9h10v10H9zM5 15V5h10",
  edit: "M4 20h4L19 9l-4-4L4 16zM13 7l4 4",
  again: "M20 11a8 8 0 1 0-2.3 6M20 5v6h-6",
  left: "M14 6l-6 6 6 6",
  right: "M10 6l6 6-6 6",
  down: "M12 5v14M6 13l6 6 6-6",
  close: "M6 6l12 12M18 6L6 18",
  file: "M7 3h7l4 4v14H7zM14 3v4h4",
  check: "M5 12l5 5 9-10",
  tool: "M14.5 6.5a4 4 0 0 1 5-1l-3 3 .5 2 2 .5 3-3a4 4 0 0 1-5.5 5L9 20.5 5.5 17l7.5-7.5a4 4 0 0 1 1.5-3z",
  warn: "M12 4l9 16H3zM12 10v4M12 17h.01",
};

/** An element. `given`: properties; `on…` are listeners, `data` its data set, names with a dash are attributes. */
export function el(tag, given = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(given)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name === "data") Object.assign(made.dataset, value);
    else if (name.includes("-") || name === "role" || name === "for") made.setAttribute(name, value);
    else if (name === "class") made.className = value;
    else made[name] = value;
  }
  made.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return made;
}

export function icon(name) {
  const made = document.createElementNS(SVG, "svg");
  made.setAttribute("viewBox", "0 0 24 24");
  made.setAttribute("aria-hidden", "true");
  made.classList.add("icon");
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", ICONS[name]);
  made.append(path);
  return made;
}

/** A button with an icon; `hint` is its name for screen readers, too. */
export function iconButton(name, hint, onclick, more = {}) {
  return el("button", { type: "button", class: "icon-button", title: hint, "aria-label": hint, onclick, ...more }, icon(name));
}

const policy = window.trustedTypes?.createPolicy("rendered", { createHTML: (text) => text });

/** The one place where markup comes in: what the head rendered. */
export function rendered(html) {
  const made = el("div", { class: "block" });
  made.innerHTML = policy ? policy.createHTML(html) : html;
  for (const code of made.querySelectorAll("pre.code")) decorate(code);
  for (const table of made.querySelectorAll("table")) {
    const frame = el("div", { class: "table", tabIndex: 0, role: "region", "aria-label": "Table" });
    table.replaceWith(frame);
    frame.append(table);
  }
  return made;
}

function decorate(code) {
  const copy = el("button", { type: "button", class: "copy-code", title: "Copy this code" }, icon("copy"), "Copy");
  copy.addEventListener("click", () => copied(code.textContent, copy));
  code.tabIndex = 0;
  const frame = el("div", { class: "code-frame" });
  code.replaceWith(frame);
  frame.append(el("div", { class: "code-head" }, el("span", {}, code.dataset.language || "text"), copy), code);
}

/** Copy a text, and say so on the button for a moment. */
export async function copied(text, button) {
  if (button.dataset.copied) return; // its mark still stands there
  const before = [...button.childNodes];
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    if (!copiedByHand(text)) {
      say("The browser does not let this page copy; select the text and copy it.", "error");
      return;
    }
  }
  button.dataset.copied = "yes";
  button.replaceChildren(icon("check"), ...(before.length > 1 ? ["Copied"] : []));
  announce("Copied");
  setTimeout(() => {
    delete button.dataset.copied;
    button.replaceChildren(...before);
  }, 1500);
}

// A page over plain HTTP from another machine has no clipboard.
function copiedByHand(text) {
  const area = el("textarea", { value: text, class: "offscreen" });
  document.body.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  return done;
}

// --- what is said -----------------------------------------------------------------------------------------------------

const toasts = el("div", { id: "toasts", role: "status", "aria-live": "polite" });
const spoken = el("div", { class: "offscreen", role: "status", "aria-live": "polite" });
document.body.append(toasts, spoken);

/** A line at the bottom for a while. */
export function say(text, kind = "info") {
  const line = el("div", { class: `toast ${kind}`, role: kind === "error" ? "alert" : null }, el("span", {}, text));
  const away = () => line.remove();
  line.append(iconButton("close", "Dismiss", away));
  toasts.append(line);
  setTimeout(away, kind === "error" ? 12000 : 4000);
}

export function announce(text) {
  spoken.textContent = text;
}

// --- dialogs and menus ------------------------------------------------------------------------------------------------

/** Ask for a text or, without `label`, a yes. Resolves to the text, true, or null. A `secret` one may be empty. */
export function ask({ title, text = "", label = null, value = "", yes, danger = false, secret = false }) {
  return new Promise((resolve) => {
    const kind = secret ? { type: "password", autocomplete: "off", maxLength: 400 } : { type: "text", required: true, maxLength: 100 };
    const field = label && el("input", { ...kind, value, id: "asked" });
    const dialog = el(
      "dialog",
      { class: "dialog", "aria-labelledby": "asked-title" },
      el(
        "form",
        { method: "dialog" },
        el("h2", { id: "asked-title" }, title),
        text && el("p", {}, text),
        field && el("label", { for: "asked" }, label),
        field,
        el(
          "div",
          { class: "dialog-buttons" },
          el("button", { type: "button", class: "button", onclick: () => dialog.close() }, "Cancel"),
          el("button", { class: danger ? "button danger" : "button primary", value: "yes" }, yes),
        ),
      ),
    );
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(dialog.returnValue === "yes" ? (field ? field.value.trim() : true) : null);
    });
    document.body.append(dialog);
    dialog.showModal();
    if (field) field.select();
  });
}

let openMenuNow = null; // its button, and what closes it

/** Another view comes: questions are taken as not answered, and menus go. */
export function closeOpen() {
  openMenuNow?.close(false);
  for (const dialog of document.querySelectorAll("dialog[open]")) dialog.close();
}

/** A menu under `button`, whose next press closes it; `items`: [text, action or address, danger]. */
export function openMenu(button, items) {
  const again = openMenuNow?.button === button;
  openMenuNow?.close();
  if (again) return;
  const menu = el("div", { class: "menu", role: "menu" });
  const close = (focus = true) => {
    menu.remove();
    openMenuNow = null;
    document.removeEventListener("pointerdown", outside, true);
    button.setAttribute("aria-expanded", "false");
    if (focus) button.focus();
  };
  const outside = (event) => menu.contains(event.target) || button.contains(event.target) || close(false);
  for (const [text, action, danger] of items) {
    const given = { role: "menuitem", class: danger ? "danger" : "", tabIndex: -1 };
    menu.append(
      typeof action === "string"
        ? el("a", { ...given, href: action, download: "", onclick: () => setTimeout(close) }, text)
        : el("button", { ...given, type: "button", onclick: () => (close(), action()) }, text),
    );
  }
  menu.addEventListener("keydown", (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    const all = [...menu.children];
    if (step) all[(all.indexOf(document.activeElement) + step + all.length) % all.length].focus();
    else if (event.key === "Escape" || event.key === "Tab") close();
    else return;
    event.preventDefault();
    event.stopPropagation();
  });
  button.setAttribute("aria-expanded", "true");
  openMenuNow = { button, close };
  document.body.append(menu);
  const at = button.getBoundingClientRect();
  menu.style.left = `${Math.max(8, Math.min(at.left, innerWidth - menu.offsetWidth - 8))}px`;
  const below = at.bottom + menu.offsetHeight + 8 < innerHeight;
  menu.style.top = `${below ? at.bottom + 4 : Math.max(8, at.top - menu.offsetHeight - 4)}px`;
  menu.firstElementChild.focus();
  document.addEventListener("pointerdown", outside, true);
}
