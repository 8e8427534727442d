// A button that copies a text, and says so to the eye and to the ear.

import { el } from "./dom.js";

/** `name`: what is copied; `code`: the element that shows the text, selected where there is no clipboard. */
export function copyButton(name, text, code) {
  const said = el("span", { class: "small muted", role: "status" });
  const button = el("button", { type: "button", text: "Copy", "aria-label": `Copy ${name}` });
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text);
      said.textContent = "Copied.";
    } catch {
      // Browsers lend the clipboard to https and to this machine alone.
      getSelection().selectAllChildren(code);
      said.textContent = "Press Ctrl+C.";
    }
    setTimeout(() => (said.textContent = ""), 3000);
  });
  return el("span", { class: "row" }, said, button);
}
