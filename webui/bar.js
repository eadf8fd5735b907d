// Beside a page that the framework makes: the links to the views, and the colours that were chosen for all of them.
(() => {
  "use strict";
  const { body, documentElement: root } = document;
  const brand = document.createElement("a");
  Object.assign(brand, { className: "brand", href: "/", title: "A new chat", textContent: "together" });
  const bar = document.createElement("header");
  bar.id = "bar";
  bar.append(brand, placeLinks("/machines"));
  body.prepend(bar);

  const colours = () => { // the framework has a class of its own for them, and sets it by the system's alone
    const dark = root.dataset.theme === "dark";
    if (body.classList.contains("dark") !== dark) body.classList.toggle("dark", dark);
  };
  const observer = new MutationObserver(colours);
  observer.observe(body, { attributes: true, attributeFilter: ["class"] });
  observer.observe(root, { attributes: true, attributeFilter: ["data-theme"] });
  colours();
})();
