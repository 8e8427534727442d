// The menu of saved views and bookmarked cases, to be exported and imported as JSON.

import { at } from "./address.js";
import { checked, keep, readSaved } from "./bookmarks.js";
import { el, plural } from "./dom.js";
import { describe } from "./filters.js";
import { readState, writeState } from "./state.js";

/** A view in words: "ureter stone, Modality: CT". */
function nameOf({ q, filters, sort }) {
  const parts = [q && `“${q}”`, ...filters.map(describe), sort && `sorted by ${sort}`].filter(Boolean);
  return parts.join(", ") || "All cases";
}

/** The menu of the browse page. */
export class SavedMenu {
  /** `state()`: what the page shows. */
  constructor(root, { state }) {
    [this.root, this._state] = [root, state];
    this._lists = el("div");
    // These stay, so that they keep the focus and a screen reader hears the status change.
    this._status = el("p", { class: "muted small", role: "status" });
    this._button = el("button", { type: "button", text: "Save this view", on: { click: () => this._save() } });
    const exportIt = el("button", { type: "button", text: "Export as JSON", on: { click: () => this._export() } });
    const input = el("input", { type: "file", accept: ".json,application/json", class: "hidden", id: "saved-file" });
    input.addEventListener("change", () => {
      this._import(input.files[0]);
      input.value = ""; // the same file may be chosen again
    });
    const actions = el("p", { class: "row" }, this._button, exportIt, el("label", { class: "button", for: "saved-file", text: "Import" }), input);
    root.append(el("div", { class: "menu-body" }, this._lists, actions, this._status));
  }

  open() {
    this._draw();
  }

  _draw(said = "") {
    const { views, bookmarks } = readSaved();
    const focused = [...this._lists.querySelectorAll("button")].indexOf(document.activeElement);
    const list = (title, items, empty) => [el("h3", { text: title }), items.length ? el("ul", { class: "saved" }, items) : el("p", { class: "muted small", text: empty })];
    this._lists.replaceChildren(
      ...list("Views", views.map((each) => this._entry(el("a", { href: at(`/${each.query}`), text: each.name }), each.name, "views", each)), "No views saved yet."),
      ...list(
        "Bookmarks",
        bookmarks.map((each) => this._entry(el("a", { href: at(`/pages/case/${each.u_id}`), text: each.title ?? each.u_id }), each.title ?? each.u_id, "bookmarks", each)),
        "No cases bookmarked yet. Each case page has a Bookmark button.",
      ),
    );
    this._status.textContent = said || "Stored in this browser only.";
    if (focused < 0) return;
    const buttons = this._lists.querySelectorAll("button");
    (buttons[Math.min(focused, buttons.length - 1)] ?? this._button).focus();
  }

  _entry(link, name, kind, entry) {
    const remove = el("button", { type: "button", class: "link", text: "Remove", "aria-label": `Remove ${name}` });
    remove.addEventListener("click", () => {
      const saved = readSaved();
      this._keep({ ...saved, [kind]: saved[kind].filter((each) => JSON.stringify(each) !== JSON.stringify(entry)) }, "Removed.");
    });
    return el("li", { class: "row" }, el("span", { class: "grow" }, link), remove);
  }

  _keep(saved, words) {
    this._draw(keep(saved) ? words : "This browser does not allow pages to store data.");
  }

  _save() {
    const state = this._state();
    const query = writeState({ ...state, shown: 0 });
    const saved = readSaved();
    const others = saved.views.filter((each) => each.query !== query);
    this._keep({ ...saved, views: [{ name: nameOf(readState(query)), query }, ...others] }, "Saved.");
  }

  _export() {
    const file = new Blob([JSON.stringify(readSaved(), null, 2)], { type: "application/json" });
    const link = el("a", { href: URL.createObjectURL(file), download: "medpix-saved.json" });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  }

  /** Add what a file holds to what is here. */
  async _import(file) {
    if (!file) return;
    let found;
    try {
      found = checked(JSON.parse(await file.text()));
    } catch {
      this._draw(`${file.name} is not a JSON file.`);
      return;
    }
    const saved = readSaved();
    const joined = (key, name) => [...new Map([...found[name], ...saved[name]].map((each) => [each[key], each])).values()];
    const count = found.views.length + found.bookmarks.length;
    const words = count ? `Imported: ${plural(found.views.length, "view")}, ${plural(found.bookmarks.length, "bookmark")}.` : "The file contains no views and no bookmarks.";
    this._keep({ views: joined("query", "views"), bookmarks: joined("u_id", "bookmarks") }, words);
  }
}
