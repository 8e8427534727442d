// A details element as a menu: its content is fetched when it is first opened; Esc and a click elsewhere close it.

import { el } from "./dom.js";

/** `load` resolves to the menu, whose `open` is called whenever it opens, and by the function that is returned if it is open. */
export function setUpMenu(root, load) {
  let menu = null;
  const fault = el("p", { class: "menu-body", role: "alert" });
  const refresh = async () => {
    if (!root.open) return;
    menu ??= load();
    try {
      (await menu).open();
    } catch (error) {
      menu = null;
      fault.textContent = error.message;
      root.append(fault);
      return;
    }
    fault.remove();
  };
  root.addEventListener("toggle", refresh);
  root.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || !root.open) return;
    event.preventDefault();
    root.open = false;
    root.querySelector("summary").focus();
  });
  document.addEventListener("click", (event) => {
    // What was clicked may be gone already.
    if (root.open && document.contains(event.target) && !root.contains(event.target)) root.open = false;
  });
  return refresh;
}
