// The views of the app and the links to them, for all of its pages; some of those are made otherwise.
"use strict";
const PLACES = [
  ["/", "Chat", "Conversations with the models", "M4 5h16v11H10l-4 4v-4H4z"],
  ["/machines", "Machines", "The machines, and which layers each of them has", "M4 5h16v6H4zM4 13h16v6H4zM8 8h.01M8 16h.01"],
  ["/models", "Models", "The models that serve, and others", "M12 3l8 4.5v9L12 21l-8-4.5v-9zM4 7.5l8 4.5 8-4.5M12 12v9"],
  ["/settings", "Settings", "Looks, how new chats begin, and all conversations", "M4 7h9M17 7h3M4 17h3M11 17h9M15 5v4M9 15v4"],
];

/** A list of links; `current` is the address of the view that is shown. */
function placeLinks(current) {
  const nav = document.createElement("nav");
  nav.className = "places";
  nav.setAttribute("aria-label", "Views");
  for (const [address, name, hint, drawing] of PLACES) {
    const link = document.createElement("a");
    Object.assign(link, { className: "place", href: address, title: hint });
    link.append(placeIcon(drawing), name);
    nav.append(link);
  }
  markPlace(nav, current);
  return nav;
}

function markPlace(nav, current) {
  for (const link of nav.children) {
    if (link.getAttribute("href") === current) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
}

function placeIcon(drawing) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  made.setAttribute("viewBox", "0 0 24 24");
  made.setAttribute("aria-hidden", "true");
  made.classList.add("icon");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  path.setAttribute("d", drawing);
  made.append(path);
  return made;
}
