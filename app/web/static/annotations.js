// Annotations of an image: what readers would correct, and a form for one more.

import { at } from "./address.js";
import { ask, getJson, Problem } from "./api.js";
import { loadCatalogue } from "./catalogue.js";
import { el, problemBox, spoken } from "./dom.js";
import { moment } from "./scores.js";

const LABELS = ["modality", "location", "location_category"];
const KEY = "medpix-key";
const LIMIT = 50;

// Not crypto.randomUUID, which only a secure context has: the service may be on a plain http address.
const randomKey = () => [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");

function entry(annotation) {
  const labels = LABELS.filter((name) => annotation[name]).map((name) => `${spoken(name)}: ${annotation[name]}`);
  return el(
    "li",
    { class: "annotation" },
    el("p", {}, el("b", { text: annotation.by }), el("span", { class: "muted small", text: ` ${moment(annotation.created_at)}` })),
    labels.length > 0 && el("p", { text: labels.join(", ") }),
    annotation.comment && el("p", { class: "long", text: annotation.comment }),
  );
}

/** A select whose first choice leaves the label as it is. */
function labelSelect(name, current, values) {
  const options = [el("option", { value: "", text: `unchanged (${current ?? "unknown"})` }), ...values.filter((value) => value !== current).map((value) => el("option", { value, text: value }))];
  return el("label", {}, spoken(name), el("select", { name }, options));
}

async function valuesOf(name) {
  try {
    return ((await loadCatalogue()).images.get(name)?.values ?? []).filter(Boolean);
  } catch {
    return [];
  }
}

export class Annotations {
  /** `root`: the part of the page that shows them. */
  constructor(root) {
    this.root = root;
    this.image = null;
  }

  clear() {
    this.image = null;
    this.root.replaceChildren();
  }

  async show(image) {
    if (this.image === image) return;
    this.image = image;
    const list = el("ul", { "aria-live": "polite" });
    const form = el("details", {}, el("summary", { text: "Correct a label or add a comment" }));
    let isAsked = false; // the form may be closed and opened again before the catalogue is there
    form.addEventListener("toggle", async () => {
      if (!form.open || isAsked) return;
      isAsked = true;
      form.append(await this._form(image, list));
    });
    this.root.replaceChildren(list, form);
    await this._list(image, list);
  }

  async _list(image, list) {
    try {
      const page = await getJson(at("/annotations"), [["image", image.image], ["sort", "-created_at"], ["limit", LIMIT]]);
      const more = page.items.length < page.total && el("li", { class: "muted small", text: `The latest ${LIMIT} of ${page.total} are shown.` });
      list.replaceChildren(...(page.items.length ? page.items.map(entry) : [el("li", { class: "muted", text: "No annotations yet." })]), ...(more ? [more] : []));
    } catch (error) {
      list.replaceChildren(el("li", {}, problemBox(error, () => this._list(image, list))));
    }
  }

  async _form(image, list) {
    const selects = await Promise.all(LABELS.map(async (name) => labelSelect(name, image[name], await valuesOf(name))));
    const said = el("div", { role: "status" });
    const key = el("label", { hidden: true }, "API key", el("input", { type: "password", name: "key", autocomplete: "off", maxlength: 200 }));
    const comment = el("label", {}, "Comment", el("textarea", { name: "comment", rows: 3, maxlength: 5000 }));
    const form = el("form", { class: "annotate" }, selects, comment, key, el("p", {}, el("button", { class: "primary", text: "Save annotation" })), said);
    // One idempotency key per annotation: sent again after a lost response, it is stored once.
    const sent = new Map();
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      const { key: typed, ...values } = Object.fromEntries(new FormData(form));
      const body = Object.fromEntries(Object.entries(values).map(([name, value]) => [name, value.trim()]).filter(([, value]) => value));
      if (!Object.keys(body).length) {
        said.replaceChildren(problemBox(new Problem("Choose a corrected label or write a comment.", 422)));
        return;
      }
      await this._send(image, JSON.stringify(body), typed, { form, list, said, key, sent });
    });
    return form;
  }

  async _send(image, body, typed, { form, list, said, key, sent }) {
    const button = form.querySelector("button");
    button.disabled = true;
    // For this tab only: a key is not to be found later.
    if (typed) sessionStorage.setItem(KEY, typed);
    const known = sessionStorage.getItem(KEY);
    if (!sent.has(body)) sent.set(body, randomKey());
    const headers = { "Content-Type": "application/json", "Idempotency-Key": sent.get(body), ...(known ? { "X-API-Key": known } : {}) };
    try {
      await ask(`${image.links.self}/annotations`, { method: "POST", headers, body });
      sent.clear();
      form.reset();
      key.hidden = true;
      said.replaceChildren(el("p", { text: "Saved." }));
      await this._list(image, list);
    } catch (error) {
      if (error.status === 401) {
        sessionStorage.removeItem(KEY);
        key.hidden = false;
        key.querySelector("input").value = "";
      }
      const words = error.status === 401 && !known ? new Problem("Writing requires an API key. Ask the operator of this service for one.", 401) : error;
      said.replaceChildren(problemBox(words, () => form.requestSubmit()));
    } finally {
      button.disabled = false;
    }
  }
}
