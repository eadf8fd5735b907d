// Pictures for the next question: a file goes to our own route, and only its name travels with the question.
(() => {
  "use strict";
  const shared = window.together;
  const { element } = shared;
  const names = []; // of pictures that are held for the next question
  let fault = "";

  const slot = () => document.querySelector("[data-together=attach]");

  const attach = async (files) => {
    fault = "";
    for (const file of files) {
      const reply = await fetch("/attachments", { method: "POST", body: file }).catch(() => null);
      const said = reply ? await reply.json().catch(() => ({})) : {};
      if (reply && reply.ok) names.push(said.name);
      else fault = (said.error && said.error.message) || "The picture did not arrive. Is the app still running?";
    }
    draw();
  };

  const chip = (name) => {
    const image = element("img");
    image.src = `/attachments/${name}`;
    image.alt = "picture";
    const remove = element("button", "remove", "Remove");
    remove.type = "button";
    remove.onclick = () => { names.splice(names.indexOf(name), 1); draw(); };
    return element("span", "chip", image, remove);
  };

  const chooser = () => {
    const input = element("input");
    input.type = "file";
    input.accept = "image/png,image/jpeg,image/webp";
    input.multiple = true;
    input.onchange = () => attach([...input.files]);
    return element("label", "attach", "Attach a picture", input);
  };

  const draw = () => {
    const place = slot();
    if (place) place.replaceChildren(chooser(), ...names.map(chip), ...(fault ? [element("span", "cause", fault)] : []));
  };

  // A question that failed comes back into its box, and so do its pictures: the notice has their names.
  const giveBack = () => {
    const failed = document.querySelector("#notice [data-pictures]");
    if (!failed) return;
    names.push(...failed.dataset.pictures.split(" "));
    failed.removeAttribute("data-pictures");
    draw();
  };

  // What goes with a question that is sent now.
  shared.take = () => {
    giveBack();
    const taken = names.splice(0).join(" ");
    fault = "";
    draw();
    return taken;
  };

  shared.onDraw.push(() => {
    const place = slot();
    const view = shared.view();
    if (!place || !view) return;
    if (!place.firstChild) draw();
    giveBack();
    place.classList.toggle("shown", [view, ...(view.services || [])].some(({ serving }) => serving && serving.sees));
  });
})();
