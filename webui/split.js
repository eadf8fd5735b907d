// Draws the Split panel: the recommendation, its layer counts to edit, and the progress of a load.
// Figures and sentences come from the head, for every edit anew; nothing is computed here. Names are set as text, never as HTML.
(() => {
  "use strict";
  const { element, meter, percent } = window.together;
  const AGAIN = 1500; // ms after which an edit without an answer is told again

  // Two sizes that are compared: in one unit, and in as many digits as show which is larger.
  const pair = (bytes, room) => {
    const shown = [size(bytes), size(room)];
    if (bytes === room || shown[0] !== shown[1]) return shown.join(" of ");
    const scale = room >= 5e7 ? 1e9 : room >= 5e4 ? 1e6 : 1e3;
    const digits = [2, 3, 4, 5, 6].find((count) => (bytes / scale).toFixed(count) !== (room / scale).toFixed(count));
    if (digits === undefined) return `${bytes} of ${room} bytes`;
    const unit = { 1e9: "GB", 1e6: "MB", 1e3: "kB" }[scale];
    return `${(bytes / scale).toFixed(digits)} of ${(room / scale).toFixed(digits)} ${unit}`;
  };
  const size = (bytes) => {
    const [unit, scale, digits] = bytes >= 5e7 ? ["GB", 1e9, bytes < 1e10 ? 1 : 0] : bytes >= 5e4 ? ["MB", 1e6, 1] : ["kB", 1e3, 1];
    return `${(bytes / scale).toFixed(digits)} ${unit}`;
  };
  const rate = (tokens) => (tokens >= 100 ? tokens.toFixed(0) : tokens.toFixed(1));
  const time = (ms) => (ms >= 100 ? ms.toFixed(0) : ms >= 1 ? ms.toFixed(1) : ms.toPrecision(2));
  const range = ({ start, stop }) => `${start}:${stop}`;
  const paragraphs = (className, texts) => texts.map((text) => element("p", className, text));

  const button = (id, className, text, action) => {
    const made = element("button", className, text);
    made.type = "button";
    made.id = id;
    made.addEventListener("click", action);
    return made;
  };

  // --- parts of a plan -----------------------------------------------------------------------------------------------
  const segment = (row, index) => {
    const box = element("div", `segment tone-${index % 6}`,
      element("span", "segment-name", row.node), element("span", "segment-range", range(row)));
    box.style.flexGrow = row.stop - row.start;
    box.title = `${row.node}: layers ${range(row)}`;
    return box;
  };

  const speed = ({ alone, each, all, users, ms }) => [
    element("strong", null, `${rate(alone)} tokens/s`), users > 1 ? " for one person alone" : "",
    ...(users > 1 ? [" · ", element("strong", null, `${rate(all)} tokens/s`), ` for ${users} people together, ${rate(each)} each`] : []),
    ` · ${time(ms)} ms per token`,
  ];

  const memory = (row) => {
    if (row.room === null) return [element("span", "faint", "not counted")];
    const text = element("div", row.over ? "over" : null, pair(row.bytes, row.room));
    const bar = meter(row.room > 0 ? row.bytes / row.room : row.bytes > 0 ? 1 : 0);
    bar.classList.toggle("over", row.over);
    return [text, bar];
  };

  // --- progress: what the nodes say of their stages ------------------------------------------------------------------
  const loadingRow = (node, stage) => {
    const fetched = stage.fetch_bytes ? ` · ${size(stage.fetched_bytes)} of ${size(stage.fetch_bytes)} fetched` : "";
    const waits = stage.waiting ? ` · waits for ${stage.waiting}` : "";
    const text = `layers ${range(stage.layers)} of ${stage.total_layers} · ${percent(stage.progress)}${fetched}${waits}`;
    return element("div", "loading-row", element("span", "node-name", node.name), element("span", "faint", text), meter(stage.progress));
  };

  const loadingRows = (view) => {
    if (!view) return [];
    const own = (stage) => stage.head === view.head && stage.state === "LOADING";
    return view.nodes.flatMap((node) => node.stages.filter(own).map((stage) => loadingRow(node, stage)));
  };

  const living = () => {
    const view = window.together.view();
    return view ? view.nodes.filter((node) => node.state !== "FAILED").map((node) => node.id).sort().join() : "";
  };

  // --- the panel -----------------------------------------------------------------------------------------------------
  window.together.split = (root, props, watch, trigger) => {
    let serial = 0; // of the newest edit; answers to older ones are late
    let again = 0; // the timer of an edit that is not answered yet
    let parts = null; // what of a shown plan changes with an edit
    let planned = ""; // the nodes that the plan was made for

    const main = element("div", "split-main");
    const loading = element("div", "split-loading");
    loading.id = "split-loading";
    root.replaceChildren(main, loading);

    const counts = () => parts.fields.map((field) => field.value);
    const tell = () => { // an edit made while another one is on its way may be dropped underneath, so it is told until it is answered
      trigger("edited", { counts: counts(), serial });
      again = window.setTimeout(tell, AGAIN);
    };
    const send = () => {
      serial += 1;
      parts.apply.disabled = true; // until the head has said that it is valid
      window.clearTimeout(again);
      tell();
    };
    const step = (field, by) => {
      field.value = Math.max(0, (parseInt(field.value, 10) || 0) + by);
      send();
    };
    const reset = () => {
      parts.fields.forEach((field, index) => { field.value = parts.recommended[index]; });
      send();
    };
    const apply = () => {
      serial += 1; // no answer to an edit shall enable the button again
      window.clearTimeout(again);
      parts.apply.disabled = true;
      trigger("apply", { counts: counts(), serial });
    };

    const editor = (row, index) => {
      const field = element("input", "split-count");
      Object.assign(field, { type: "number", min: 0, step: 1, id: `split-layers-${index}`, value: row.count });
      field.setAttribute("aria-label", `layers of ${row.node}`);
      field.addEventListener("input", send);
      const less = button(`split-less-${index}`, "split-step", "−", () => step(field, -1));
      const more = button(`split-more-${index}`, "split-step", "+", () => step(field, 1));
      less.setAttribute("aria-label", `one layer less for ${row.node}`);
      more.setAttribute("aria-label", `one layer more for ${row.node}`);
      return { field, less, more, box: element("div", "split-editor", less, field, more) };
    };

    const cell = (label, ...children) => {
      const made = element("td", null, ...children);
      made.dataset.label = label;
      return made;
    };

    const build = (plan) => {
      const editors = plan.rows.map(editor);
      const cells = plan.rows.map(() => ({ range: cell("Range"), ms: cell("ms"), memory: cell("Memory") }));
      const rows = plan.rows.map((row, index) => element("tr", null,
        cell("Machine", element("span", "node-name", row.node)), cell("Layers", editors[index].box),
        cells[index].range, cells[index].ms, cells[index].memory));
      const names = ["Machine", "Layers", "Range", "ms", "Memory needed"].map((name) => element("th", null, name));
      const table = element("table", "nodes split-table", element("thead", null, element("tr", null, ...names)), element("tbody", null, ...rows));
      const place = (id) => { const made = element("div", id); made.id = id; return made; };
      parts = {
        cells, recommended: plan.recommended, fields: editors.map((one) => one.field),
        controls: editors.flatMap((one) => [one.field, one.less, one.more]),
        bar: element("div", "layer-bar"), speed: place("split-speed"), wrong: place("split-wrong"), why: place("split-why"),
        said: place("split-said"), stale: place("split-stale"),
        apply: button("split-apply", "split-button primary", "Apply", apply), reset: button("split-reset", "split-button", "Reset", reset),
      };
      parts.wrong.setAttribute("role", "alert");
      parts.said.setAttribute("aria-live", "polite");
      planned = living();
      main.replaceChildren(element("div", "split-title", element("span", "model", plan.name), element("span", "faint", plan.sizing)),
        parts.bar, parts.speed, table, parts.wrong, element("div", "split-buttons", parts.apply, parts.reset),
        parts.said, loading, parts.stale, parts.why);
    };

    const fill = (plan) => {
      plan.rows.forEach((row, index) => {
        const { range: where, ms, memory: needed } = parts.cells[index];
        where.replaceChildren(row.stop > row.start ? element("span", "held", range(row)) : element("span", "faint", "none"));
        ms.replaceChildren(row.stop > row.start ? time(row.ms) : element("span", "faint", "–"));
        needed.replaceChildren(...memory(row));
      });
      const busy = Boolean(plan.applying);
      parts.bar.replaceChildren(...plan.rows.flatMap((row, index) => (row.stop > row.start ? [segment(row, index)] : [])));
      parts.speed.replaceChildren(...(plan.speed ? speed(plan.speed) : []));
      parts.wrong.replaceChildren(...paragraphs("wrong", plan.failed ? [plan.failed] : plan.wrong));
      parts.said.replaceChildren(...(busy ? paragraphs("faint", ["Loading …"]) : plan.done ? paragraphs("good", [plan.done]) : []));
      parts.why.replaceChildren(...paragraphs(null, plan.why));
      for (const control of parts.controls) control.disabled = busy;
      parts.reset.disabled = busy || !plan.changed;
      parts.apply.disabled = busy || plan.wrong.length > 0;
      parts.apply.textContent = busy ? "Applying …" : "Apply";
    };

    const show = (value) => {
      if (value && value.kind === "plan") {
        if (value.serial !== null && (value.serial !== serial || !parts)) return; // the answer to an older edit
        window.clearTimeout(again);
        if (value.serial === null) build(value);
        fill(value);
        return;
      }
      window.clearTimeout(again);
      parts = null;
      root.append(loading);
      if (!value) main.replaceChildren(element("p", "faint", "Recommend shows who would take which layers, how fast that is, and why."));
      else if (value.kind === "busy") main.replaceChildren(element("p", "faint busy", value.text));
      else main.replaceChildren(...paragraphs("wrong", value.wrong), element("ul", "advice", ...value.advice.map((text) => element("li", null, text))));
    };

    window.together.onDraw.push(() => {
      loading.replaceChildren(...loadingRows(window.together.view()));
      if (!parts) return;
      const changed = planned !== living();
      if (changed !== parts.stale.hasChildNodes()) {
        parts.stale.replaceChildren(...(changed ? paragraphs("wrong", ["The machines are others now; recommend again."]) : []));
      }
    });
    watch("value", () => show(props.value));
    show(props.value);
  };
})();
