// Draws the Split panel: the recommendation, its layer counts to edit, and the progress of a load.
// An edit keeps the number of layers: what one machine takes, its neighbours give. What the split then costs, and what is
// wrong with it, comes from the head. Names are set as text, never as HTML.
(() => {
  "use strict";
  const { element, meter, percent, size, part } = window.together;
  const AGAIN = 1500; // ms after which an edit without an answer is told again

  const rate = (tokens) => (tokens >= 100 ? tokens.toFixed(0) : tokens.toFixed(1));
  const time = (ms) => (ms >= 100 ? ms.toFixed(0) : ms >= 1 ? ms.toFixed(1) : ms.toPrecision(2));
  const range = ({ start, stop }) => `${start}:${stop}`;

  // The counts after machine `index` was given `count` layers: the next machines give what it takes, then those before it,
  // and the nearest one of these that has layers takes what it gives. `before` are the counts when the edit began, so that
  // the digits that a person types on the way to a number leave no trace.
  const balanced = (before, index, count, layers) => {
    const counts = [...before];
    counts[index] = count;
    const others = [...before.keys()];
    const givers = [...others.slice(index + 1), ...others.slice(0, index).reverse()];
    let rest = layers - counts.reduce((sum, one) => sum + one, 0);
    const taker = givers.find((other) => before[other] > 0) ?? givers[0];
    if (rest > 0 && taker !== undefined) counts[taker] += rest;
    for (const other of givers) {
      const given = Math.min(counts[other], Math.max(-rest, 0));
      counts[other] -= given;
      rest += given;
    }
    return counts;
  };
  // Whether no machine begins with a layer that stays with those before it.
  const legal = (counts, joined) => {
    let reached = 0;
    return counts.every((count) => {
      const start = reached;
      reached += count;
      return !(count && joined.includes(start));
    });
  };
  // The counts for the number of layers nearest to `wished` that can be, from there on by steps of `by`, or both ways
  // where that is 0; null where none can.
  const snapped = (before, index, wished, by, { layers, joined }) => {
    for (let away = 0; away <= layers; away += 1) {
      for (const count of by ? [wished + by * away] : [wished - away, wished + away]) {
        const found = count >= 0 && count <= layers ? balanced(before, index, count, layers) : null;
        if (found && legal(found, joined)) return found;
      }
    }
    return null;
  };
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
    element("strong", null, `${rate(alone)} tokens/s`), users > 1 ? " for one user" : "",
    ...(users > 1 ? [" · ", element("strong", null, `${rate(all)} tokens/s`), ` for ${users} users at once, ${rate(each)} each`] : []),
    ` · ${time(ms)} ms per token`,
  ];

  const memory = (row) => {
    if (row.room === null) return [element("span", "faint", "not counted")];
    const text = element("div", row.over ? "over" : row.bytes > 0 ? null : "faint", part(row.bytes, row.room));
    const bar = meter(row.room > 0 ? row.bytes / row.room : row.bytes > 0 ? 1 : 0);
    bar.classList.toggle("over", row.over);
    return [text, bar];
  };

  // --- progress: what the nodes say of their stages ------------------------------------------------------------------
  const loadingRow = (node, stage) => {
    const loaded = stage.progress > 0 ? ` · ${percent(stage.progress)}` : "";
    const fetched = stage.fetch_bytes ? ` · ${part(stage.fetched_bytes, stage.fetch_bytes)} ${stage.converting ? "converted" : "fetched"}${stage.fetched_bytes > 0 ? "" : " yet"}` : "";
    const waits = stage.waiting ? ` · waits for ${stage.waiting}` : "";
    const text = `layers ${range(stage.layers)} of ${stage.total_layers}${loaded}${fetched}${waits}`;
    return element("div", "loading-row", element("span", "node-name", node.name), element("span", "faint", text), meter(stage.progress));
  };

  const loadingRows = (view) => {
    if (!view) return [];
    const own = (stage) => stage.head === view.head && stage.state === "LOADING";
    return view.nodes.flatMap((node) => node.stages.filter(own).map((stage) => loadingRow(node, stage)));
  };

  // What full caches let go, of the nodes and of the app itself.
  const letGo = (view) => {
    if (!view) return [];
    const named = view.nodes.flatMap((node) => node.let_go.map((gone) => `${node.name}: ${gone.sentence}`));
    return paragraphs("faint", [...named, ...view.let_go.map((gone) => gone.sentence)]);
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
    const pace = element("div", "split-pace"); // what runs now, against its plan
    pace.id = "split-pace";
    const gone = element("div", "split-gone");
    gone.id = "split-gone";
    root.replaceChildren(pace, main, loading, gone);

    const counts = () => parts.fields.map((field) => field.value);
    const tell = () => { // an edit made while another one is on its way may be dropped underneath, so it is told until it is answered
      trigger("edited", { counts: counts(), serial });
      again = window.setTimeout(tell, AGAIN);
    };
    const send = () => {
      serial += 1;
      parts.apply.disabled = true; // until the head has said that it is valid
      place(rowsOf(counts()));
      window.clearTimeout(again);
      tell();
    };
    const set = (numbers, except) => {
      parts.numbers = numbers;
      parts.fields.forEach((field, index) => { if (index !== except) field.value = numbers[index]; });
    };
    const edit = (index) => { // every key until the field is left counts from where the first one found the split
      if (parts.editing !== index) Object.assign(parts, { editing: index, before: parts.numbers });
      const text = parts.fields[index].value;
      set(/^\d{1,6}$/.test(text) ? balanced(parts.before, index, Number(text), parts.layers) : parts.before, index);
      send();
    };
    const step = (index, by) => {
      parts.editing = null;
      const found = snapped(parts.numbers, index, parts.numbers[index] + by, by, parts);
      if (!found) return;
      set(found);
      send();
    };
    const left = (index) => { // a number that a person has typed becomes the nearest one that can be
      if (!parts) return;
      const { editing, before, numbers } = parts;
      parts.editing = null;
      if (editing !== index || legal(numbers, parts.joined)) return;
      const found = snapped(before, index, numbers[index], 0, parts);
      if (!found) return;
      set(found);
      send();
    };
    const reset = () => {
      parts.editing = null;
      set(parts.recommended.map(Number));
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
      Object.assign(field, { type: "number", min: 0, max: parts.layers, step: 1, id: `split-layers-${index}`, value: row.count });
      field.setAttribute("aria-label", `layers of ${row.node}`);
      field.addEventListener("input", () => edit(index));
      field.addEventListener("blur", () => left(index));
      const less = button(`split-less-${index}`, "split-step", "−", () => step(index, -1));
      const more = button(`split-more-${index}`, "split-step", "+", () => step(index, 1));
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
      parts = { layers: plan.layers, joined: plan.joined, numbers: plan.rows.map((row) => Number(row.count) || 0), editing: null };
      const editors = plan.rows.map(editor);
      const cells = plan.rows.map(() => ({ range: cell("Range"), ms: cell("ms"), memory: cell("Memory") }));
      const rows = plan.rows.map((row, index) => element("tr", null,
        cell("Machine", element("span", "node-name", row.node)), cell("Layers", editors[index].box),
        cells[index].range, cells[index].ms, cells[index].memory));
      const names = ["Machine", "Layers", "Range", "ms", "Memory needed"].map((name) => element("th", null, name));
      const table = element("table", "nodes split-table", element("thead", null, element("tr", null, ...names)), element("tbody", null, ...rows));
      const slot = (id) => { const made = element("div", id); made.id = id; return made; };
      Object.assign(parts, {
        cells, names: plan.rows.map((row) => row.node), recommended: plan.recommended, fields: editors.map((one) => one.field),
        controls: editors.flatMap((one) => [one.field, one.less, one.more]),
        bar: element("div", "layer-bar"), speed: slot("split-speed"), wrong: slot("split-wrong"), why: slot("split-why"),
        said: slot("split-said"), stale: slot("split-stale"),
        apply: button("split-apply", "split-button primary", "Apply", apply), reset: button("split-reset", "split-button", "Reset", reset),
      });
      parts.wrong.setAttribute("role", "alert");
      parts.said.setAttribute("aria-live", "polite");
      planned = living();
      main.replaceChildren(element("div", "split-title", element("span", "model", plan.name), element("span", "faint", plan.sizing)),
        parts.bar, parts.speed, table, ...paragraphs("faint", plan.together), parts.wrong, element("div", "split-buttons", parts.apply, parts.reset),
        parts.said, loading, parts.stale, parts.why);
    };

    const rowsOf = (texts) => {
      let reached = 0;
      return texts.map((text, index) => ({ node: parts.names[index], start: reached, stop: (reached += Number(text) || 0) }));
    };
    const place = (rows) => { // who has which layers: no figure of the head is needed for that
      rows.forEach((row, index) => parts.cells[index].range.replaceChildren(
        row.stop > row.start ? element("span", "held", range(row)) : element("span", "faint", "none")));
      parts.bar.replaceChildren(...rows.flatMap((row, index) => (row.stop > row.start ? [segment(row, index)] : [])));
    };

    const fill = (plan) => {
      place(plan.rows);
      plan.rows.forEach((row, index) => {
        const { ms, memory: needed } = parts.cells[index];
        ms.replaceChildren(row.stop > row.start ? time(row.ms) : element("span", "faint", "–"));
        needed.replaceChildren(...memory(row));
      });
      const busy = Boolean(plan.applying);
      parts.speed.replaceChildren(...(plan.speed ? speed(plan.speed) : []));
      parts.wrong.replaceChildren(...paragraphs("wrong", plan.failed ? [plan.failed] : plan.wrong));
      parts.said.replaceChildren(...(plan.done ? paragraphs("good", [plan.done]) : []));
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
      root.append(loading, gone);
      if (!value) main.replaceChildren(element("p", "faint", "Recommend shows who would take which layers, how fast that is, and why."));
      else if (value.kind === "busy") main.replaceChildren(element("p", "faint busy", value.text));
      else main.replaceChildren(...paragraphs("wrong", value.wrong), element("ul", "advice", ...value.advice.map((text) => element("li", null, text))));
    };

    window.together.onDraw.push(() => {
      const view = window.together.view();
      const shared = ((view && view.services) || []).map((one) => one.sharing).filter(Boolean);
      const paced = view && view.pace ? paragraphs(["", "faster"].includes(view.pace.cause) ? "faint" : "cause", [view.pace.text]) : [];
      pace.replaceChildren(...paced, ...paragraphs("faint", shared));
      loading.replaceChildren(...loadingRows(view));
      gone.replaceChildren(...letGo(view));
      if (!parts) return;
      const changed = planned !== living();
      if (changed !== parts.stale.hasChildNodes()) {
        parts.stale.replaceChildren(...(changed ? paragraphs("wrong", ["The machines have changed; recommend again."]) : []));
      }
    });
    watch("value", () => show(props.value));
    show(props.value);
  };
})();
