// What every page has: the choice of colours, and the keys for the search and for the list of keys.

import { at } from "./address.js";
import { byId, isTyping } from "./dom.js";

const THEMES = ["auto", "light", "dark"];
function setUpTheme() {
  const button = byId("theme");
  const current = () => document.documentElement.dataset.theme ?? "auto";
  const name = () => (button.textContent = `Theme: ${current()}`);
  button.addEventListener("click", () => {
    const theme = THEMES[(THEMES.indexOf(current()) + 1) % THEMES.length];
    if (theme === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    try {
      localStorage.setItem("medpix-theme", theme);
    } catch {
      // No permission: it lasts as long as the page.
    }
    name();
  });
  name();
}

/** The list is fetched when it is first asked for. */
async function showKeys() {
  (await import("./keys.js")).showKeys();
}

/** To the search box, which is on the browse page. */
function search() {
  const box = byId("q");
  if (!box) return location.assign(`${byId("back")?.getAttribute("href").split("#")[0] ?? at("/")}#q`);
  box.focus();
  return box.select();
}

document.addEventListener("keydown", (event) => {
  if (isTyping(event) || (event.key !== "/" && event.key !== "?")) return;
  event.preventDefault();
  if (event.key === "?") showKeys();
  else search();
});
byId("keys").addEventListener("click", showKeys);
setUpTheme();
if (byId("q") && location.hash === "#q") search();
