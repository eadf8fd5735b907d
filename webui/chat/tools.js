// Tools of a chat: which servers and functions it has, servers of all chats, and calls that wait for a word.

import { call, sentence } from "./api.js";
import { ask, el, icon, say } from "./dom.js";

const AFTER = 500; // milliseconds between the last letter and its check
const FUNCTIONS = '[{"name": "weather", "description": "…",\n  "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}]';
const SCHEMA = '{"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}';

// --- in the settings of a chat ----------------------------------------------------------------------------------------

/** Fields for tools and the schema of answers; `changed` is told after each change that can be used. */
export class ToolFields {
  constructor(changed) {
    this.changed = changed;
    this.known = [];
    this.chosen = [];
    ToolFields.count += 1;
    this.servers = el("div", { class: "checks" });
    this.calls = el("select", { id: `calls-${ToolFields.count}`, title: "Whether the model may answer without a call", onchange: () => this.changed() }, el("option", { value: "auto" }, "As the model decides"), el("option", { value: "required" }, "First a call, then the answer"));
    this.functions = this.#editor("functions", "Functions", FUNCTIONS, "Functions without a server, as JSON: the model calls them, and you give their results", 4);
    this.schema = this.#editor("json_schema", "JSON by a schema", SCHEMA, "Answers are JSON that fits this schema; empty leaves them text", 4);
    this.node = el(
      "details",
      { class: "tool-fields" },
      el("summary", { title: "What the model may call, and the form of its answers" }, "Tools and JSON"),
      el("fieldset", { class: "field" }, el("legend", {}, "Servers of tools"), this.servers),
      this.functions.node,
      el("div", { class: "field", data: { field: "calls" } }, el("label", { for: this.calls.id }, "Calls"), this.calls),
      this.schema.node,
    );
  }

  static count = 0;

  #editor(name, label, placeholder, hint, rows) {
    const id = `${name.replaceAll("_", "-")}-${ToolFields.count}`;
    const wrong = el("p", { class: "wrong", id: `${id}-wrong`, role: "status", hidden: true });
    const field = el("textarea", { id, rows, placeholder, title: hint, spellcheck: false, class: "json", "aria-describedby": wrong.id, oninput: () => this.#typed(editor) });
    const editor = { name, field, wrong, timer: 0, good: "" };
    editor.node = el("div", { class: "field", data: { field: name } }, el("label", { for: id }, label), field, wrong);
    return editor;
  }

  /** What stands in the fields, of an editor whose text cannot be used the last one that could. */
  get values() {
    return { servers: this.chosen, functions: this.functions.good, calls: this.calls.value, json_schema: this.schema.good };
  }

  draw(settings) {
    this.chosen = settings.servers;
    if (this.calls !== document.activeElement) this.calls.value = settings.calls;
    for (const editor of [this.functions, this.schema]) {
      if (editor.field === document.activeElement || editor.timer || !editor.wrong.hidden) continue;
      editor.good = editor.field.value = settings[editor.name];
    }
    this.#drawServers();
    const any = settings.servers.length || settings.functions || settings.json_schema;
    if (any) this.node.open = true;
  }

  /** Before settings that hold whatever is typed now. */
  clear() {
    for (const editor of [this.functions, this.schema]) {
      clearTimeout(editor.timer);
      editor.timer = 0;
      editor.wrong.hidden = true;
    }
  }

  /** Look which servers there are. */
  async look() {
    this.known = await call("GET", "/tool-servers").catch(() => []);
    this.#drawServers();
  }

  #drawServers() {
    const names = [...new Set([...this.known.map((server) => server.name), ...this.chosen])];
    const now = JSON.stringify([names, this.chosen]);
    if (now === this.drawn) return;
    this.drawn = now;
    const boxes = names.map((name) => {
      const at = this.known.find((server) => server.name === name)?.at ?? "removed";
      const box = el("input", { type: "checkbox", checked: this.chosen.includes(name), onchange: () => this.#choose(name, box.checked) });
      return el("label", { title: at }, box, el("span", {}, name));
    });
    this.servers.replaceChildren(...(boxes.length ? boxes : [el("p", { class: "faint" }, "None yet: add one in ", el("a", { href: "/settings" }, "Settings"), ".")]));
  }

  #choose(name, on) {
    this.chosen = on ? [...this.chosen, name] : this.chosen.filter((each) => each !== name);
    this.changed();
  }

  /** A mistake is said as soon as one pauses; only what can be used is kept. */
  #typed(editor) {
    clearTimeout(editor.timer);
    editor.timer = setTimeout(() => this.#check(editor), AFTER);
  }

  async #check(editor) {
    const text = editor.field.value;
    let said = "";
    try {
      const { wrong } = await call("POST", "/tool-servers/check", { [editor.name]: text });
      said = sentence(wrong);
    } catch (refusal) {
      said = refusal.message;
    }
    if (text !== editor.field.value) return; // another check is on its way
    editor.timer = 0;
    editor.wrong.textContent = said;
    editor.wrong.hidden = !said;
    editor.field.setAttribute("aria-invalid", String(Boolean(said)));
    if (said || editor.good === text) return;
    editor.good = text;
    this.changed();
  }
}

// --- on the page of settings ------------------------------------------------------------------------------------------

/** The servers of all chats: what they have, adding an address, removing. */
export class ServerList {
  constructor() {
    this.list = el("ul", { class: "servers" });
    this.name = el("input", { id: "server-name", required: true, maxLength: 32, pattern: "[A-Za-z0-9_\\-]+", placeholder: "calendar", title: "What chats call it: letters, digits, _ and -" });
    this.url = el("input", { id: "server-url", type: "url", required: true, placeholder: "http://127.0.0.1:3001/mcp", title: "Where it speaks MCP by streamable HTTP" });
    this.key = el("input", { id: "server-key", type: "password", autocomplete: "off", title: "Only for a server that asks for one; it goes to that server alone" });
    this.add = el("button", { class: "button primary", title: "Look at its tools and keep it" }, "Add");
    this.node = el(
      "section",
      {},
      el("h2", {}, "Servers of tools"),
      el("p", { class: "faint" }, "Models may call tools of servers that speak MCP. You choose them in the settings of a chat, and allow each call. Programs that are servers are added in a terminal: ", el("code", {}, "python3 launch.py tools add NAME -- PROGRAM"), "."),
      this.list,
      el(
        "form",
        { class: "new-server", onsubmit: (event) => (event.preventDefault(), this.#add()) },
        el("div", { class: "field" }, el("label", { for: "server-name" }, "Name"), this.name),
        el("div", { class: "field" }, el("label", { for: "server-url" }, "Address"), this.url),
        el("div", { class: "field" }, el("label", { for: "server-key" }, "Key, if it asks for one"), this.key),
        this.add,
      ),
    );
  }

  async open() {
    try {
      const found = await call("GET", "/tool-servers");
      this.list.replaceChildren(...found.map((server) => this.#row(server)));
    } catch (refusal) {
      say(refusal.message, "error");
    }
  }

  #row(server) {
    const tools = el("div", { class: "faint tools-of" });
    const look = el("button", { type: "button", class: "button small", title: `What ${server.name} offers now`, onclick: () => this.#look(server, tools) }, "Tools");
    const again = server.allowed.length > 0 && el("button", { type: "button", class: "button small", title: `You allowed: ${server.allowed.join(", ")}`, onclick: () => this.#order("DELETE", server, "/allowed") }, "Ask for each call again");
    const remove = el("button", { type: "button", class: "button small danger", title: `Chats call ${server.name} no more`, onclick: () => this.#remove(server) }, "Remove");
    return el("li", {}, el("div", { class: "row" }, el("b", {}, server.name), el("span", { class: "faint at" }, server.at), look, again, remove), tools);
  }

  async #look(server, node) {
    node.textContent = "Looking …";
    try {
      const { tools, left_out } = await call("GET", `/tool-servers/${server.name}/tools`);
      const rows = tools.map((tool) => el("li", {}, el("b", {}, tool.name), " ", tool.description));
      node.replaceChildren(rows.length ? el("ul", {}, rows) : "It has no tools.");
      if (left_out.length) node.append(el("p", {}, `Left out, since models cannot be held to them: ${left_out.join(", ")}`));
    } catch (refusal) {
      node.textContent = refusal.message;
    }
  }

  async #add() {
    this.add.disabled = true;
    try {
      const made = await call("POST", "/tool-servers", { name: this.name.value.trim(), url: this.url.value.trim(), key: this.key.value.trim() });
      for (const field of [this.name, this.url, this.key]) field.value = "";
      say(`${made.name} has ${made.tools.length} ${made.tools.length === 1 ? "tool" : "tools"}. Choose it in the settings of a chat.`);
      await this.open();
    } catch (refusal) {
      say(refusal.message, "error");
    } finally {
      this.add.disabled = false;
    }
  }

  async #remove(server) {
    if (await ask({ title: "Remove this server?", text: `Chats call ${server.name} no more.`, yes: "Remove", danger: true })) await this.#order("DELETE", server, "");
  }

  async #order(method, server, path) {
    try {
      await call(method, `/tool-servers/${server.name}${path}`);
      await this.open();
    } catch (refusal) {
      say(refusal.message, "error");
    }
  }
}

// --- in a conversation ------------------------------------------------------------------------------------------------

const STATES = { writing: "Running …", done: "", stopped: "Stopped.", cut: "The app ended while this ran.", failed: "", asking: "" };

/** A call with its result, or with what can be said to it; `word` gets that. */
export function callCard(turn, made, word) {
  const { said, state } = turn;
  const name = said.tool || made?.name || "a tool";
  const head = el("div", { class: "call-head" }, icon("tool"), el("b", {}, name), said.server && el("span", { class: "faint" }, `of ${said.server}`), el("span", { class: "faint" }, STATES[state]));
  const card = el("div", { class: `call ${state}` }, head, made && el("pre", { class: "plain arguments", tabIndex: 0, "aria-label": "Arguments" }, shownJson(made.arguments)));
  if (said.note) card.append(el("div", { class: "call-note" }, sentence(said.note)));
  if (state === "done") card.append(el("details", { class: "call-result" }, el("summary", {}, "Result"), el("div", { class: "plain" }, said.text)));
  if (state === "asking" || state === "cut" || state === "stopped" || state === "failed") card.append(said.server ? choices(said, state, word) : said.tool ? resultForm(word) : "");
  return card;
}

function choices(said, state, word) {
  const button = (text, title, allow, kind = "") => el("button", { type: "button", class: `button small ${kind}`, title, onclick: () => word({ allow }) }, text);
  if (state !== "asking") return el("div", { class: "row" }, button("Call again", "Make this call again", "once"));
  return el(
    "div",
    { class: "row", role: "group", "aria-label": "Allow this call?" },
    button("Allow once", `Let ${said.server} do this`, "once", "primary"),
    button("Always allow", `Do not ask again for ${said.tool} of ${said.server}, as long as it stays what it is`, "always"),
    button("Do not allow", "The model is told, and goes on", "no"),
  );
}

function resultForm(word) {
  const field = el("textarea", { rows: 3, "aria-label": "Result of this function", placeholder: "What the function gives", title: "The model goes on with this" });
  return el(
    "div",
    { class: "function-result" },
    field,
    el(
      "div",
      { class: "row" },
      el("button", { type: "button", class: "button small primary", title: "Give this to the model", onclick: () => word({ result: field.value }) }, "Send the result"),
      el("button", { type: "button", class: "button small", title: "The model is told that you did not allow it", onclick: () => word({ allow: "no" }) }, "Do not allow"),
    ),
  );
}

function shownJson(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 1);
  } catch {
    return text;
  }
}
