// The view of models: those that serve or are being loaded, and where others are loaded.

import { sentence } from "./api.js";
import { el } from "./dom.js";
import { count } from "./turn.js";

export class ModelsView {
  /** `page`: app.js. */
  constructor(page) {
    this.page = page;
    this.title = "Models";
    this.list = el("div", { class: "served-models" });
    this.node = el(
      "section",
      { class: "preferences", "aria-label": "Models", hidden: true },
      el(
        "div",
        { class: "preferences-inside" },
        el("section", {}, el("h2", {}, "Serving now"), this.list),
        el(
          "section",
          {},
          el("h2", {}, "Others"),
          el("p", { class: "faint" }, "Machines lists the models that are here, and says which split of one would be fast; a model of the hub is loaded there by its name."),
          el("a", { class: "button", href: "/machines", title: "Choose a model, see its split, and load it" }, "Load a model on Machines"),
        ),
      ),
    );
  }

  open() {
    this.news();
  }

  /** The models have changed. */
  news() {
    const { models, reason } = this.page.serving;
    const none = sentence(reason) || "No model serves yet.";
    this.list.replaceChildren(...(models.length ? models.map(card) : [el("p", { class: "faint" }, none)]));
  }
}

function card(model) {
  const facts = [
    model.context && `context of ${count(model.context)} tokens`,
    model.sees && "sees pictures",
    model.thinks && "can think first",
  ].filter(Boolean);
  return el(
    "article",
    { class: "served-model", data: { model: model.name } },
    el("h3", {}, model.name),
    el("p", {}, model.sentence),
    facts.length > 0 && el("p", { class: "faint" }, sentence(facts.join(" · "))),
  );
}
