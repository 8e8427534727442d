// How a result looks: cards of cases, tiles of images, hits of a search, and the words for an empty result.

import { at } from "./address.js";
import { el, onPlainClick, plural, spoken, thumbnail } from "./dom.js";
import { caseAddress, EMPTY } from "./state.js";

const SNIPPETS = 2;

/** A text with its matching words marked. */
function marked({ snippet, ranges }) {
  // The API counts characters, JavaScript counts UTF-16 units: they differ outside of the basic plane.
  const characters = [...snippet];
  const parts = [];
  let position = 0;
  for (const [start, end] of ranges) {
    parts.push(characters.slice(position, start).join(""), el("mark", { text: characters.slice(start, end).join("") }));
    position = end;
  }
  return [...parts, characters.slice(position).join("")];
}

/** The matches of a hit; fields with the same words, such as a title that is the diagnosis, are one. */
function distinct(matches) {
  const found = new Map();
  for (const match of matches) {
    const words = match.snippet.trim().toLowerCase();
    const same = found.get(words);
    if (!same) found.set(words, { ...match, fields: [match.field] });
    else if (!same.fields.includes(match.field)) same.fields.push(match.field);
  }
  return [...found.values()];
}

function matchLine(match) {
  const fields = (match.fields ?? [match.field]).map((name, index) => (index ? spoken(name).toLowerCase() : spoken(name)));
  return [el("span", { class: "muted", text: `${fields.join(", ")}: ` }), ...marked(match)];
}

const patientOf = (record) => [record.age !== null && plural(record.age, "year"), record.sex].filter(Boolean).join(", ");

/** What a case card says below its title. */
function caseFacts(record, cover) {
  const modalities = record?.modalities?.join(" and ") || cover.modality;
  const count = record?.image_count ? plural(record.image_count, "image") : "";
  const isMixed = record && !record.location && record.image_count > 1;
  const where = isMixed ? "several locations" : record?.location ?? cover.location ?? "location unknown";
  return [el("span", { class: "line" }, el("b", { text: modalities }), ` ${where}`), el("span", { class: "line muted", text: count })];
}

/** A case as a link to its page; in quiz mode without all that tells the diagnosis, the modality or the location. */
export function caseCard({ u_id: uId, cover, hit }, state, { isLazy = false } = {}) {
  const link = el("a", { class: "tile case-tile", href: caseAddress(cover.image, state), data: { image: cover.image, case: uId } });
  link.append(thumbnail(cover.image, { isLazy, size: cover }));
  if (state.quiz) link.append(el("span", { class: "name line", text: "Unknown case" }), el("span", { class: "line muted", text: patientOf(cover) }));
  else {
    link.append(el("span", { class: "name line" }), ...caseFacts(hit?.case, cover));
    if (hit) nameCase(link, hit.case, cover, hit);
  }
  return el("li", {}, link);
}

/** Put what the record of a case says onto its card. */
export function nameCase(card, record, cover, hit = null) {
  const title = distinct(hit?.matches ?? []).find((match) => match.fields.includes("title") && match.snippet === record.title);
  const name = card.querySelector(".name");
  name.replaceChildren(...(title ? marked(title) : [record.title ?? record.u_id]));
  name.title = record.title ?? record.u_id;
  for (const line of card.querySelectorAll(".name ~ .line")) line.remove();
  name.after(...caseFacts(record, cover), el("span", { class: "line muted id", text: record.u_id }));
}

/** A case that a search has found: its card beside the passages that hold the words. */
export function hitView(found, state) {
  const { hit, cover } = found;
  if (state.quiz) return caseCard(found, state);
  const title = distinct(hit.matches).find((match) => match.fields.includes("title"));
  const captions = hit.images.flatMap((image) => image.matches);
  const passages = distinct([...hit.matches, ...captions]).filter((match) => match !== title && match.snippet !== hit.case.title);
  const link = el("a", { href: caseAddress(cover.image, state), class: "tile hit", data: { image: cover.image, case: found.u_id } });
  link.append(
    thumbnail(cover.image, { size: cover }),
    el(
      "span",
      { class: "hit-text" },
      el("span", { class: "name" }, title && title.snippet === hit.case.title ? marked(title) : hit.case.title ?? found.u_id),
      el("span", { class: "facts-line" }, ...caseFacts(hit.case, cover), el("span", { class: "line muted id", text: found.u_id })),
      passages.slice(0, SNIPPETS).map((match) => el("span", { class: "snippet" }, matchLine(match))),
    ),
  );
  return el("li", {}, link);
}

/** An image as a link to its case. `hit`: of the search that found it, whose words are marked. */
export function imageTile(image, state, { hit = null, isLazy = false } = {}) {
  const link = el("a", { class: "tile", href: caseAddress(image.image, state), data: { image: image.image } });
  link.append(thumbnail(image.image, { isLazy, size: image }));
  if (state.quiz) link.append(el("span", { class: "line", text: "Unknown image" }));
  else {
    const words = el("span", { class: "line" }, el("b", { text: image.modality }), ` ${image.plane ?? "plane unknown"}, ${image.location ?? "location unknown"}`);
    const own = hit?.images.find((found) => found.image.image === image.image)?.matches[0];
    const match = own ?? hit?.matches[0];
    const text = match ? (own ? marked(own) : matchLine(match)) : [image.caption ?? "no caption"];
    link.append(words, el("span", { class: `caption${match ? " found" : ""}` }, text));
  }
  return el("li", {}, link);
}

/** What to do about an empty result; `change` takes what to change of the state. */
export function emptyView({ q, filters, view }, change) {
  const hints = [];
  if (q) hints.push("Use fewer or other words. The search compares word stems: “ureters” finds “ureter”.");
  if (q.includes('"')) hints.push("Leave out the quotation marks: quoted words must stand side by side.");
  if (filters.length) hints.push("Remove one of the active filters.");
  const button = (text, changed) => el("button", { type: "button", text, on: { click: () => change(changed) } });
  return el(
    "div",
    { class: "notice" },
    el("p", { text: view === "images" ? "No images match." : "No cases match." }),
    el("ul", {}, hints.map((text) => el("li", { text }))),
    el("p", {}, filters.length > 0 && button("Remove all filters", { filters: [] }), q && button("Clear the search", { q: "" })),
  );
}

/** What the search itself says of its result: a better spelling, or that it is less than was asked for. */
export function searchNotes(about, { q, mode }, change) {
  const notes = [];
  if (about.exact_id) {
    const id = about.exact_id;
    notes.push(el("p", {}, "Open ", el("a", { href: caseAddress(id, EMPTY), text: id }), "."));
  }
  const suggestion = about.did_you_mean;
  if (suggestion) {
    const link = el("a", { href: at(`/?${new URLSearchParams({ q: suggestion })}`), text: suggestion });
    notes.push(el("p", {}, "Did you mean ", onPlainClick(link, () => change({ q: suggestion })), "?"));
  }
  if (about.model) notes.push(el("p", { text: `Ranked by the similarity of each image to the words, computed by ${about.model}. All images are ranked; the last ones do not match.` }));
  if (mode === "hybrid" && about.mode === "words" && !about.exact_id) {
    notes.push(el("p", {}, "Found by words only: the sentence embeddings are not ready. ", el("a", { href: location.href, text: "Search again" })));
  }
  if (about.matched === "any") notes.push(el("p", { text: `No case has all the words of “${q}”. These have some of them.` }));
  return notes;
}

/** Grey tiles, until there are images. */
export function skeleton() {
  return el("ul", { class: "grid skeleton", "aria-hidden": "true" }, Array.from({ length: 20 }, () => el("li")));
}
