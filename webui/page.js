// Fills the header, the offer, the node table and the advice from /events, and tells split.js of every view.
// Names come from other machines: they are set as text, never as HTML.
(() => {
  "use strict";
  const SILENCE_MS = 5000; // the head sends something every second
  let lastEvent = 0;
  let started = Date.now();
  let source = null;
  let view = null;

  const element = (tag, className, ...children) => {
    const node = document.createElement(tag);
    if (className) node.className = className;
    for (const child of children) if (child !== null) node.append(child); // a string becomes a text node
    return node;
  };
  // Sizes as in together/wording.py; of nothing there is no number.
  const size = (bytes) => {
    if (!(bytes > 0)) return "nothing";
    const [unit, scale, digits] = bytes >= 5e7 ? ["GB", 1e9, bytes < 1e10 ? 1 : 0] : bytes >= 5e4 ? ["MB", 1e6, 1] : ["kB", 1e3, 1];
    return `${(bytes / scale).toFixed(digits)} ${unit}`;
  };
  // Two sizes that are compared: in one unit, and in as many digits as show which is larger.
  const part = (bytes, whole) => {
    const [unit, scale] = whole >= 5e7 ? ["GB", 1e9] : whole >= 5e4 ? ["MB", 1e6] : ["kB", 1e3];
    const shown = [size(bytes), size(whole)];
    if (shown[0] === shown[1] && bytes !== whole && bytes > 0) {
      const digits = [2, 3, 4, 5, 6].find((count) => (bytes / scale).toFixed(count) !== (whole / scale).toFixed(count));
      if (digits === undefined) return `${bytes} of ${whole} bytes`;
      return `${(bytes / scale).toFixed(digits)} of ${(whole / scale).toFixed(digits)} ${unit}`;
    }
    return `${shown[0].replace(` ${unit}`, "")} of ${shown[1]}`;
  };
  const percent = (part) => `${Math.round(100 * part)} %`;
  const range = (layers) => `${layers.start}:${layers.stop}`;
  const pill = (state) => element("span", `pill ${state.toLowerCase()}`, state);

  const meter = (part) => {
    const fill = element("div", "meter-fill");
    fill.style.width = `${Math.min(100, Math.max(0, 100 * part))}%`;
    return element("div", "meter", fill);
  };

  const shared = { element, meter, percent, size, part, view: () => view, onDraw: [] }; // for split.js
  window.together = shared;

  // --- header --------------------------------------------------------------------------------------------------------
  const segment = (nodes, serving) => (stage, index) => {
    const owner = nodes.find((node) => node.id === stage.node);
    const held = owner && owner.state !== "FAILED" && owner.stages.find((one) => one.ring === serving.ring && range(one.layers) === range(stage.layers));
    const name = owner ? owner.name : stage.node;
    const state = held ? held.state : "MISSING";
    const box = element("div", `segment tone-${index % 6} ${state.toLowerCase()}`,
      element("span", "segment-name", name), element("span", "segment-range", range(stage.layers)));
    box.style.flexGrow = stage.layers.stop - stage.layers.start;
    box.title = `${name}: layers ${range(stage.layers)} on ${stage.backend}/${stage.device}, ${state}`;
    return box;
  };

  const layerBar = (nodes, serving) => {
    const plan = serving.plan;
    if (!plan) return null;
    const bar = element("div", "layer-bar", ...plan.stages.map(segment(nodes, serving)));
    bar.setAttribute("role", "img");
    bar.setAttribute("aria-label", `layers of ${plan.model.name} by node`);
    return bar;
  };

  const header = (state, connected) => {
    const { serving } = state;
    const title = element("div", "title",
      serving.model ? element("span", "model", serving.model) : null,
      pill(serving.state),
      element("span", `link ${connected ? "live" : "gone"}`, connected ? "live" : "disconnected"));
    const text = connected ? serving.sentence : "The app does not answer. Is it still running?";
    return [title, ...about(state, serving, text, connected), ...(state.services || []).slice(1).map(other(state, connected))];
  };

  const about = ({ nodes }, serving, text, connected) => {
    const loading = connected && ["LOADING", "RECOVERING"].includes(serving.state) ? meter(serving.progress) : null;
    return [element("div", `sentence ${serving.state.toLowerCase()}`, text), loading, layerBar(nodes, serving)];
  };

  const other = (state, connected) => ({ serving }) => element("div", "service",
    element("div", "title", element("span", "model", serving.model), pill(serving.state)),
    ...about(state, serving, serving.sentence, connected));

  // --- nodes ---------------------------------------------------------------------------------------------------------
  const address = (node) => // broken before its port where it must be
    element("div", "faint", node.endpoint.addresses[0] || "?", element("wbr"), `:${node.endpoint.port}`);

  const holds = (stage) => {
    const done = stage.state === "LOADING" && stage.progress > 0 ? ` · ${percent(stage.progress)}` : stage.state === "FAILED" ? " · failed" : "";
    return element("div", null, element("span", "held", range(stage.layers)), ` of ${stage.total_layers}, ${stage.model}${done}`);
  };

  const cell = (label, ...children) => {
    const node = element("td", null, ...children);
    node.dataset.label = label;
    return node;
  };

  const row = (remarks) => (node) => {
    const gone = node.state === "FAILED"; // what it had is not what there is
    const memory = gone ? [element("span", "faint", "–")] : node.memory_bytes > 0
      ? [element("div", null, `${part(node.free_bytes, node.memory_bytes)} free`), meter(1 - node.free_bytes / node.memory_bytes)]
      : [element("span", "faint", "not known yet")];
    const devices = node.devices.map((device) =>
      element("div", null, device.description || device.name, element("span", "faint", ` ${device.backend}/${device.name}`)));
    const said = (wanted) => remarks.filter((remark) => remark.node === node.id && wanted(remark))
      .map((remark) => element("div", "cause", remark.text));
    return element("tr", null,
      cell("Node", element("div", "node-name", node.name), address(node), ...said((remark) => remark.kind === "version")),
      cell("State", pill(node.state), node.cause ? element("div", "cause", node.cause) : null),
      cell("Device", ...(devices.length ? devices : [element("span", "faint", "being probed")])),
      cell("Memory", ...memory,
        ...said((remark) => remark.kind !== "version")),
      cell("Layers", ...(gone ? [element("span", "faint", "–")] : node.stages.length ? node.stages.map(holds) : [element("span", "faint", "none")])));
  };

  const nodes = (state) => {
    const names = ["Node", "State", "Device", "Memory", "Layers held"];
    const count = state.nodes.length;
    const heading = element("h2", null, `${count} node${count === 1 ? "" : "s"}`);
    const locked = (state.locked || []).map((text) => element("p", "faint", text));
    if (!count) return [heading, element("p", "faint", "No node is there yet. Start one with: python3 launch.py node"), ...locked];
    const head = element("thead", null, element("tr", null, ...names.map((name) => element("th", null, name))));
    return [heading, element("table", "nodes", head, element("tbody", null, ...state.nodes.map(row([...(state.limits || []), ...(state.notes || [])])))), ...locked];
  };

  // --- what the head offers ------------------------------------------------------------------------------------------
  const show = (id, text, shown) => {
    const box = document.getElementById(id);
    const place = document.querySelector(`[data-together=${id}]`);
    if (!box || !place) return;
    box.classList.toggle("shown", shown);
    if (place.textContent !== text) place.replaceChildren(text); // a string becomes a text node
  };

  const hints = (state, connected) => {
    const loadAgain = document.getElementById("load-again");
    if (loadAgain) loadAgain.classList.toggle("shown", connected && state.serving.state === "FAILED");
    const offer = state.offer || "";
    const better = [state, ...(state.services || []).slice(1)].filter((one) => one.advice && one.serving.state === "READY");
    const advice = better.map((one) => `A better split: ${one.advice}.`).join(" ");
    show("offer", offer, connected && offer !== "");
    show("advice", advice, connected && advice !== "");
  };

  // --- what the controls are for ---------------------------------------------------------------------------------------
  const HINTS = {
    "load-again": "Try once more to load the model that failed",
    "load-last": "Load what was loaded last, with the same split",
    rebalance: "Load the split that the sentence names; answers go on",
    "split-model": "What a split is recommended for",
    "split-strategy": "How the layers are divided among the machines",
    "split-context": "How many tokens a conversation may have; empty takes the number that is shown",
    "split-users": "How many conversations are answered at once; empty takes the number that is shown",
    "split-form": "In which bits the machines keep the weights",
    "split-ratio": "As 3:1, in the order of the machines",
    "split-recommend": "Measure the machines once, and show who would take which layers",
  };
  const explain = () => {
    for (const [id, hint] of Object.entries(HINTS)) {
      const control = document.getElementById(id);
      if (control && !control.title) control.title = hint;
    }
  };

  // --- the stream ----------------------------------------------------------------------------------------------------
  const draw = () => {
    const connected = lastEvent > 0 && Date.now() - lastEvent < SILENCE_MS && source && source.readyState === EventSource.OPEN;
    const places = { header: document.querySelector("[data-together=header]"), nodes: document.querySelector("[data-together=nodes]") };
    if (!places.header || !places.nodes) return; // the page is still being built
    const state = view || { nodes: [], serving: { state: "EMPTY", model: "", plan: null, sentence: "" }, reason: "" };
    hints(state, connected);
    explain();
    places.header.replaceChildren(...header(state, connected).filter(Boolean));
    places.nodes.replaceChildren(...nodes(state));
    places.nodes.classList.toggle("stale", !connected);
    for (const listener of shared.onDraw) listener(connected);
  };

  // A key that was revoked opens nothing any more: the page that asks for one takes this one's place.
  let leaving = false;
  const lookAtKey = () => fetch("/version").then((reply) => {
    if (leaving || ![401, 429].includes(reply.status)) return;
    leaving = true; // a second one would break off the first
    location.assign("/login");
  }).catch(() => {});

  const connect = () => {
    if (source) source.close();
    source = new EventSource("/events");
    source.onmessage = (message) => {
      view = JSON.parse(message.data);
      lastEvent = Date.now();
      draw();
    };
    source.onerror = () => {
      draw();
      if (source.readyState === EventSource.CLOSED) lookAtKey();
    };
  };

  connect();
  setInterval(() => {
    if (source.readyState === EventSource.CLOSED || Date.now() - Math.max(lastEvent, started) > SILENCE_MS) {
      started = Date.now();
      connect();
    }
    draw();
  }, 1000);
})();
