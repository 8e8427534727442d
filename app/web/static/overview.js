// Several files: a table of what was predicted, to sort and to download.

import { el, percent } from "./dom.js";

const COLUMNS = [
  ["file", "File"],
  ["modality", "Modality"],
  ["modality_probability", "Probability"],
  ["location", "Location"],
  ["location_probability", "Probability"],
  ["note", "Note"],
];
const CSV = [
  "file", "modality", "modality_probability", "modality_decision", "location", "location_probability",
  "location_decision", "inputs", "dataset_image", "dataset_split", "notes", "problem",
];

/** A value as a field of CSV; a leading sign is kept from being read as a formula. */
function csvField(value) {
  const text = String(value ?? "");
  const safe = /^[=+\-@\t\r]/.test(text) ? `'${text}` : text;
  return /[",\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
}

const toCsv = (rows) => `${[CSV, ...rows.map((row) => CSV.map((name) => row[name]))].map((row) => row.map(csvField).join(",")).join("\r\n")}\r\n`;

function compare(a, b) {
  return typeof a === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
}

export class Overview {
  /** `onChoose` is told which item to show. */
  constructor(root, { onChoose }) {
    [this.root, this.onChoose] = [root, onChoose];
    this._by = null;
    this._isDescending = false;
    this._items = [];
  }

  /** Show what is known of the items; of one alone there is nothing to compare. */
  show(items, chosen) {
    [this._items, this._chosen] = [items, chosen];
    if (items.length < 2) return this.root.replaceChildren();
    const focused = this.root.contains(document.activeElement) ? document.activeElement.dataset.key : null;
    const download = el("button", { type: "button", text: "Download as CSV", data: { key: "csv" }, on: { click: () => this._download() } });
    const table = el("table", { class: "overview" }, el("thead", {}, el("tr", {}, COLUMNS.map((column, index) => this._head(column, index)))), el("tbody", {}, this._sorted().map((item) => this._row(item))));
    this.root.replaceChildren(el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "All files" }, table), el("p", {}, download));
    if (focused) this.root.querySelector(`[data-key="${CSS.escape(focused)}"]`)?.focus();
    return null;
  }

  _sorted() {
    if (!this._by) return this._items;
    const value = (item) => item.row[this._by] ?? null;
    const answered = this._items.filter((item) => value(item) !== null);
    const sign = this._isDescending ? -1 : 1;
    answered.sort((a, b) => sign * compare(value(a), value(b)));
    // In either order, those without an answer stand at the end.
    return [...answered, ...this._items.filter((item) => value(item) === null)];
  }

  _head([name, text], index) {
    const isSorted = this._by === name;
    const about = index && text === "Probability" ? `${text} of the ${name.split("_")[0]}` : text;
    const button = el("button", { type: "button", class: "link", text: `${text}${isSorted ? (this._isDescending ? " ▾" : " ▴") : ""}`, "aria-label": about, data: { key: name } });
    button.addEventListener("click", () => {
      // Probabilities begin with the highest.
      this._isDescending = isSorted ? !this._isDescending : name.endsWith("_probability");
      this._by = name;
      this.show(this._items, this._chosen);
    });
    return el("th", { scope: "col", "aria-sort": isSorted ? (this._isDescending ? "descending" : "ascending") : null }, button);
  }

  _row(item) {
    const { row } = item;
    const cell = (task) => {
      if (!row[task]) return [el("td", { text: row.problem ? "–" : "…" }), el("td")];
      const isSure = row[`${task}_decision`] === "confident";
      return [el("td", {}, row[task], " ", !isSure && el("span", { class: "tag warn", text: "uncertain" })), el("td", { class: "number", text: percent(row[`${task}_probability`]) })];
    };
    const name = el("button", { type: "button", class: "link", text: row.file, data: { key: `item-${item.number}` }, on: { click: () => this.onChoose(item) } });
    return el("tr", { class: item === this._chosen ? "chosen" : null }, el("th", { scope: "row" }, name), cell("modality"), cell("location"), el("td", { class: "small", text: row.problem ?? row.note ?? "" }));
  }

  _download() {
    const file = new Blob([toCsv(this._sorted().map((item) => item.row))], { type: "text/csv" });
    const link = el("a", { href: URL.createObjectURL(file), download: "medpix-predictions.csv" });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  }
}
