// Copies a text, and says so in a status that screen readers announce.

import { el } from "./dom.js";

/** Copy a text and say so in `said`; `code`: the element that shows the text, selected where there is no clipboard. */
export async function copyText(text, said, code = null) {
  try {
    await navigator.clipboard.writeText(text);
    said.textContent = "Copied.";
  } catch {
    // The Clipboard API needs a secure context: https or localhost.
    if (code) getSelection().selectAllChildren(code);
    said.textContent = code ? "Press Ctrl+C." : "Copying is not allowed here.";
  }
  setTimeout(() => (said.textContent = ""), 3000);
}

/** A button that copies. `name`: what is copied. */
export function copyButton(name, text, code) {
  const said = el("span", { class: "small muted", role: "status" });
  const button = el("button", { type: "button", text: "Copy", "aria-label": `Copy ${name}` });
  button.addEventListener("click", () => copyText(text, said, code));
  return el("span", { class: "row" }, said, button);
}
