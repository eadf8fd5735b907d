// Before anything is drawn: light or dark, as chosen in the settings or as the system has it.
"use strict";
const systemIsDark = matchMedia("(prefers-color-scheme: dark)");
function applyTheme() {
  let chosen = null;
  try {
    chosen = localStorage.getItem("together.theme");
  } catch {
    // a browser that keeps nothing: as the system
  }
  const dark = chosen === "dark" || (chosen !== "light" && systemIsDark.matches);
  document.documentElement.dataset.theme = dark ? "dark" : "light";
}
systemIsDark.addEventListener("change", applyTheme);
applyTheme();
