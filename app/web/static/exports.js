// The Export menu: what to download of the current result, in which values and in which format.

import { at } from "./address.js";
import { el, plural } from "./dom.js";
import { MAX_CASES, Result } from "./result.js";

const KINDS = [
  ["images", "Images", "One row per image: modality, plane, location, age, sex, caption, size, source and split, with the title and diagnosis of its case."],
  ["cases", "Cases", "One row per case: title, history, exam, findings, diagnosis, discussion and topic."],
  ["records", "Records", "One row per image with all fields of its case: history, findings, diagnosis, discussion and topic too."],
];
const FORMATS = [
  ["csv", "CSV", "for spreadsheets"],
  ["parquet", "Parquet", "for pandas, Polars and Spark"],
  ["json", "JSON", "one array"],
  ["jsonl", "JSON Lines", "one record per line"],
  ["zip", "ZIP", "the PNG files in a folder per split, with metadata.jsonl"],
];
const VALUES = [
  ["false", "Normalised", "Placeholders and unknown values are empty; field names are those of the API."],
  ["true", "Raw", "The dataset's own records, unchanged. JSON and JSON Lines only."],
];

/** Options of which one is chosen, each with a sentence. */
function choices(legend, name, options, chosen) {
  const rows = options.map(([value, text, about]) => {
    const box = el("input", { type: "radio", name, value, checked: value === chosen });
    return el("label", { class: "choice" }, box, el("span", {}, el("b", { text }), el("span", { class: "muted small", text: about })));
  });
  return el("fieldset", {}, el("legend", { text: legend }), rows);
}

/** The ids of all cases of a result; those of the first 700 where there are more. */
async function caseIds(state) {
  const all = new Result(state);
  const ids = [];
  while (!all.done && ids.length < MAX_CASES) ids.push(...(await all.nextCases(100)).map((each) => each.u_id));
  return ids.slice(0, MAX_CASES);
}

export class ExportMenu {
  /** `root`: the details element of the menu; `current()`: the result and the state of the page. */
  constructor(root, { current }) {
    this._current = current;
    this._turn = 0;
    this._kind = null; // until the reader chooses: what the page shows
    this._link = el("a", { class: "button primary", download: "", text: "Download" });
    this._about = el("p", { class: "small", role: "status" });
    this._form = el("form", { class: "menu-body" });
    this._form.addEventListener("change", (event) => {
      if (event.target.name === "of") this._kind = event.target.value;
      this._update();
    });
    this._form.addEventListener("submit", (event) => event.preventDefault());
    root.append(this._form);
  }

  /** Offer the current result. */
  open() {
    [this._result, this._state] = this._current();
    if (!this._result) return;
    const { _state: state } = this;
    const values = this._values();
    this._form.replaceChildren(
      choices("What", "of", KINDS, this._kind ?? state.view),
      choices("Format", "format", FORMATS, values.format ?? "csv"),
      choices("Values", "raw", VALUES, values.raw ?? "false"),
      this._about,
      this._link,
    );
    this._update();
  }

  _values() {
    return Object.fromEntries(new FormData(this._form));
  }

  /** Keep the choices to those that go together, and let the link lead to the file. */
  async _update() {
    const option = (name, value) => this._form.querySelector(`input[name=${name}][value=${value}]`);
    let { of, format, raw } = this._values();
    option("format", "zip").disabled = of === "cases";
    if (of === "cases" && format === "zip") option("format", (format = "csv")).checked = true;
    option("raw", "true").disabled = !["json", "jsonl"].includes(format);
    if (option("raw", "true").disabled && raw === "true") option("raw", (raw = "false")).checked = true;
    const [result, state] = [this._result, this._state];
    const turn = (this._turn += 1);
    this._link.removeAttribute("href");
    this._about.textContent = "Preparing …";
    try {
      const { params, sorted } = await this._select(result, state, of);
      if (turn !== this._turn) return; // another choice was made meanwhile
      const query = new URLSearchParams([...params, ["of", of], ["format", format]]);
      if (["json", "jsonl"].includes(format)) query.set("raw", raw);
      this._link.href = at(`/export?${query}`);
      this._about.textContent = `Contains the current results. ${sorted}`;
    } catch (error) {
      if (turn === this._turn) this._about.textContent = `No export: ${error.message}`;
    }
  }

  /** The parameters that select the result, and a sentence on its order. */
  async _select(result, state, of) {
    const byId = "Sorted by case id.";
    if (of === "cases") {
      const isAll = !state.q && !state.filters.length;
      if (isAll) return { params: [], sorted: byId };
      const ids = await caseIds(state);
      return { params: result.conditions(ids), sorted: `${plural(ids.length, "case")}. ${byId}` };
    }
    const params = (await result.query()) ?? [];
    // An export knows no order by relevance or similarity, nor one by a field of cases.
    if (state.sort && !result.isByCase && !result.isByWords) return { params: [...params, ["sort", state.sort]], sorted: "Sorted as shown." };
    return { params, sorted: byId };
  }
}
