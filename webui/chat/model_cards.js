// Cards of models: of this machine and of the hub, with what can be done with each.

import { call, sentence } from "./api.js";
import { ask, el, iconButton, openMenu, say } from "./dom.js";
import { ALL_FACTS, countText, sizeText } from "./fits.js";
import { order } from "./model_work.js";

const SOURCES = { bundled: "comes with the app", models: "the app's own folder", cache: "the app's cache", hub: "the hub's cache" };
const BACKENDS = { torch: "PyTorch", mlx: "MLX", checksum: "the test backend" };

/** A model of this machine. `view`: models.js. */
export function localCard(view, model) {
  const here = view.here;
  const facts = [
    model.title,
    sizeText(model.bytes),
    model.bits > 0 && `${model.bits.toFixed(1)} bits each`,
    model.family,
    model.context > 0 && `context of ${model.context.toLocaleString("en")} tokens`,
    model.backends.length > 0 && `runs on ${model.backends.map((name) => BACKENDS[name] ?? name).join(" and ")}`,
  ];
  const broken = model.fault && el("p", { class: "refusal" }, sentence(model.fault));
  const part = model.part < 1 && el("p", { class: "part" }, `${Math.floor(100 * model.part)} % of it are here${model.held ? `: ${model.held}` : ""}.`);
  const rest = here && model.part < 1 && model.source === "cache" && model.quantize === "no" && model.name.includes("/");
  const items = deeds(view, model);
  const more = items.length > 0 && iconButton("more", `More for ${model.name}, ${model.title}`, (event) => openMenu(event.currentTarget, items), { "aria-haspopup": "menu" });
  return el(
    "article",
    { class: "model", data: { id: model.id, model: model.name } },
    el(
      "div",
      { class: "model-head" },
      el("h3", {}, model.name),
      model.loaded && el("span", { class: "tag" }, "loaded"),
      here && !model.fault && loadButton(view, model),
      rest && el("button", { type: "button", class: "button small", title: `Download what is missing of ${model.name}`, onclick: () => view.download(model.name) }, "Download the rest"),
      here && more,
    ),
    el("p", { class: "faint" }, facts.filter(Boolean).join(" · ")),
    el("p", { class: "faint where", title: model.place || null }, whereFrom(model)),
    broken,
    part,
    here && !model.fault && model.quantize === "no" && view.fits.node(model.load, (form) => formButtons(view, model, form), model.family ? ["params", "quantization"] : ALL_FACTS),
  );
}

function whereFrom(model) {
  const source = SOURCES[model.source] ?? model.source;
  const others = model.nodes.length ? `${model.source === "nodes" ? "on" : "also on"} ${model.nodes.join(", ")}` : "";
  if (model.source === "nodes") return sentence(`not on this machine, but ${others}`);
  return sentence([source, model.source === "cache" ? "" : model.place, others].filter(Boolean).join(" · "));
}

function loadButton(view, model) {
  const hint = model.part < 1 ? `Load ${model.name}: each machine fetches what it lacks` : `Load ${model.name}, ${model.title}`;
  return el("button", { type: "button", class: "button small primary", title: hint, onclick: (event) => view.load(event.currentTarget, model.load, model.quantize) }, "Load");
}

/** What can be done with one form: load it so, or have it made first. */
function formButtons(view, model, form) {
  const found = [];
  if (form.fit !== "no") {
    found.push(el("button", { type: "button", class: "button small primary", onclick: (event) => view.load(event.currentTarget, model.load, form.quantize) }, `Load ${form.title}`));
  }
  if (form.quantize !== "no") {
    const made = view.models.some((other) => other.name === model.name && other.form === form.form && other.part === 1);
    if (!made && model.source !== "nodes") found.push(el("button", { type: "button", class: "button small", title: "A load does this, too; so it is done before", onclick: () => view.quantize(model.load, form.quantize) }, `Quantize to ${form.title} now`));
  }
  return found.length ? [el("div", { class: "row" }, found)] : [];
}

function deeds(view, model) {
  const items = model.source === "nodes" ? [] : [["Inspect", () => inspect(model.load, model.name)]];
  if (!model.fault && model.part === 1 && model.quantize === "no" && model.source !== "nodes") items.push(["Convert to a folder for MLX", () => convert(view, model)]);
  if (model.own) items.push([model.part < 1 ? "Delete what is here" : "Delete", () => remove(view, model), true]);
  return items;
}

async function remove(view, model) {
  const again = view.disk?.spare.includes(model.id) ? " It can be made again from the published weights, which stay." : "";
  const text = `${model.name}, ${model.title}: ${sizeText(model.bytes)} will be gone from the disk.${again}`;
  if (!(await ask({ title: "Delete this model?", text, yes: "Delete", danger: true }))) return;
  if (await order("DELETE", `/library/models/${model.id}`)) view.refresh();
}

async function convert(view, model) {
  const text = "The folder is among the app's own models, in MLX's format, which mlx-lm opens too.";
  const usual = `${model.name.split("/").at(-1)}-mlx`;
  const folder = await ask({ title: `Convert ${model.name}`, text, label: "Name of the new folder", value: usual, yes: "Convert" });
  if (folder) await order("POST", "/library/jobs", { job: { kind: "convert", model: model.load, folder } });
}

/** What its headers say, in a dialog. */
export async function inspect(model, name) {
  let lines = [];
  try {
    lines = (await call("POST", "/library/inspect", { model })).lines;
  } catch (refusal) {
    say(refusal.message, "error");
    return;
  }
  const close = el("button", { type: "button", class: "button", onclick: () => dialog.close() }, "Close");
  const dialog = el(
    "dialog",
    { class: "dialog wide", "aria-labelledby": "inspected" },
    el("h2", { id: "inspected" }, name),
    el("div", { class: "inspected", tabIndex: 0, role: "region", "aria-label": "What it is" }, el("dl", { class: "keys" }, lines.map(([key, text]) => [el("dt", {}, sentence(key)), el("dd", {}, text)]))),
    el("div", { class: "dialog-buttons" }, close),
  );
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
}

// --- the hub ----------------------------------------------------------------------------------------------------------

/** A model that a search found. */
export function hubCard(view, model) {
  const facts = [
    model.family && (model.runs === false ? `${model.family}, which does not run here` : model.family),
    model.params > 0 && `${countText(model.params)} parameters`,
    model.bytes > 0 && sizeText(model.bytes),
    model.context > 0 && `context of ${model.context.toLocaleString("en")} tokens`,
    model.licence && `licence ${model.licence}`,
    `${countText(model.downloads)} downloads`,
    model.changed,
  ];
  const tags = [model.gated && el("span", { class: "tag", title: "Its author asks who wants it: accept its licence on the hub, then give the app a token" }, "gated"), model.gguf && el("span", { class: "tag" }, "GGUF")];
  const get = !model.gguf && model.runs !== false && el("button", { type: "button", class: "button small", title: `Download ${model.name} to this machine`, onclick: () => view.download(model.name) }, "Download");
  const more = iconButton("more", `More for ${model.name}`, (event) => openMenu(event.currentTarget, [["Inspect", () => inspect(model.name, model.name)]]), { "aria-haspopup": "menu" });
  return el(
    "article",
    { class: "model", data: { hub: model.name } },
    el("div", { class: "model-head" }, el("h3", {}, model.name), tags, get, !model.gguf && more),
    el("p", { class: "faint" }, facts.filter(Boolean).join(" · ")),
    model.gguf ? files(view, model) : model.runs !== false && view.fits.node(model.name, (form) => hubButtons(view, model.name, form), ["context", "quantization"]),
  );
}

function hubButtons(view, name, form) {
  if (form.fit === "no") return [];
  const hint = "Each machine fetches the layers that it gets";
  return [el("div", { class: "row" }, el("button", { type: "button", class: "button small primary", title: hint, onclick: (event) => view.load(event.currentTarget, name, form.quantize) }, `Load ${form.title}`))];
}

/** The models of a repository of GGUF files, once somebody wants to see them. */
function files(view, model) {
  const list = el("div", { class: "gguf-files" });
  const show = async () => {
    button.disabled = true;
    try {
      const found = (await call("POST", "/library/files", { model: model.name })).files;
      list.replaceChildren(...(found.length ? found.map((file) => fileRow(view, model, file)) : [el("p", { class: "faint" }, "No file of it is a whole model.")]));
      button.remove();
      list.querySelector("button")?.focus();
    } catch (refusal) {
      button.disabled = false;
      say(refusal.message, "error");
    }
  };
  const button = el("button", { type: "button", class: "button small", onclick: show }, "Show its files");
  return el("div", {}, button, list);
}

function fileRow(view, model, file) {
  const name = file.name.slice(model.name.length + 1);
  return el(
    "div",
    { class: "gguf-file" },
    el("div", { class: "model-head" }, el("h4", {}, name), el("span", { class: "faint" }, sizeText(file.bytes)), el("button", { type: "button", class: "button small", title: `Download ${name}`, onclick: () => view.download(file.name) }, "Download")),
    view.fits.node(file.name, (form) => hubButtons(view, file.name, form), ALL_FACTS),
  );
}
