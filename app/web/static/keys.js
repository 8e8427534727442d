// The list of keys.

import { el } from "./dom.js";

const KEYS = [
  ["Every page", "", [["/", "search"], ["?", "this list"], ["Esc", "close, or go back"]]],
  ["Browse", "browse", [["↓ →", "from the search box to the results; then the arrow keys move between them"], ["q", "quiz mode on or off"]]],
  ["Case", "case", [
    ["↑ ↓ wheel", "previous and next image of the case"],
    ["← →", "previous and next case of the results"],
    ["f", "full screen"],
    ["+ − 0", "zoom in, zoom out, fit; Shift with the arrow keys pans"],
    ["a i r", "brightness and contrast, invert, reset"],
    ["c", "compare two images"],
    ["q n", "quiz mode on or off, next unknown case"],
  ]],
];

/** The keys of this page before those of the others. */
function keysDialog() {
  const isHere = ([, page]) => page === "" || document.body.classList.contains(`page-${page}`);
  const groups = [...KEYS.filter(isHere), ...KEYS.filter((group) => !isHere(group))];
  const close = el("button", { type: "button", text: "Close" });
  const rows = (keys) => keys.flatMap(([key, what]) => [el("dt", {}, key.split(" ").map((each) => el("kbd", { text: each }))), el("dd", { text: what })]);
  const parts = groups.map(([title, , keys]) => [el("h3", { text: title }), el("dl", { class: "keys" }, rows(keys))]);
  const dialog = el("dialog", { class: "card", "aria-labelledby": "keys-title" }, el("h2", { id: "keys-title", text: "Keys" }), parts.flat(), close);
  close.addEventListener("click", () => dialog.close());
  document.body.append(dialog);
  return dialog;
}

let dialog = null;

export function showKeys() {
  dialog ??= keysDialog();
  dialog.showModal();
}
