// How the images of a result look: tiles in a grid, hits of a search, and the words for a result without images.

import { el, spoken } from "./dom.js";
import { caseAddress } from "./state.js";

const THUMBNAIL = 256;
// Some of the words that every text has; the search looks for none of them.
const FREQUENT = /^(an?|and|are|as|at|be|by|for|from|has|have|in|is|it|no|not|of|on|or|that|the|this|to|was|were|with)$/i;

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

const matchLine = (match) => [el("span", { class: "muted", text: `${spoken(match.field)}: ` }), ...marked(match)];

/** An image as a link to its case. `hit`: of the search that found it, whose words are marked. */
export function tile(image, state, { hit = null, isLazy = false } = {}) {
  const scale = Math.min(1, THUMBNAIL / Math.max(image.width, image.height));
  const picture = el("img", {
    src: `/images/${encodeURIComponent(image.image)}/thumbnail?width=${THUMBNAIL}`,
    width: Math.max(1, Math.round(image.width * scale)),
    height: Math.max(1, Math.round(image.height * scale)),
    alt: "",
    loading: isLazy ? "lazy" : "eager",
    decoding: "async",
  });
  const words = el("span", { class: "line" }, el("b", { text: image.modality }), ` ${image.plane ?? "plane unknown"}, ${image.location ?? "location unknown"}`);
  const own = hit?.images.find((found) => found.image.image === image.image)?.matches[0];
  const match = own ?? hit?.matches[0];
  const text = match ? (own ? marked(own) : matchLine(match)) : [image.caption ?? "no caption"];
  const link = el("a", { class: "tile", href: caseAddress(image.image, state), data: { image: image.image } });
  link.append(el("span", { class: "frame" }, picture), words, el("span", { class: `caption${match ? " found" : ""}` }, text));
  return el("li", {}, link);
}

/** A case that was found, with its images. */
export function hitView({ hit, images }, state) {
  const matches = [...hit.matches, ...hit.images.flatMap((image) => image.matches)].slice(0, 3);
  const title = el("a", { href: caseAddress(images[0].image, state), text: hit.case.title ?? hit.case.u_id });
  return el(
    "article",
    { class: "hit" },
    el("h3", {}, title, el("span", { class: "muted small", text: ` ${hit.case.u_id}` })),
    matches.map((match) => el("p", { class: "snippet small" }, matchLine(match))),
    el("ul", { class: "grid" }, images.map((image) => tile(image, state))),
  );
}

/** What to do about a result without images; `change` takes what to change of the state. */
export function emptyView({ q, filters }, change) {
  const words = q.replaceAll('"', " ").split(/\s+/).filter(Boolean);
  const isExcluding = words.length > 0 && /^(-("[^"]*"|\S+)\s*)+$/.test(q);
  const isFrequent = !isExcluding && words.every((word) => word.startsWith("-") || FREQUENT.test(word));
  const hints = [];
  if (isExcluding) hints.push("Add a word to look for: a word with a minus only leaves cases out.");
  else if (q && isFrequent) hints.push("Add a word that names something: words as frequent as “the” are not looked for.");
  else if (q) hints.push("Use fewer or other words. A search looks for word stems: “ureters” finds “ureter”.");
  if (q.includes('"')) hints.push("Leave out the quotation marks: words in them must stand side by side.");
  if (filters.length) hints.push("Remove a filter; those that are active stand above.");
  const button = (text, changed) => el("button", { type: "button", text, on: { click: () => change(changed) } });
  return el(
    "div",
    { class: "notice" },
    el("p", { text: "No image fits." }),
    el("ul", {}, hints.map((text) => el("li", { text }))),
    el("p", {}, filters.length > 0 && button("Remove all filters", { filters: [] }), q && button("Clear the search", { q: "" })),
  );
}

/** Grey tiles, until there are images. */
export function skeleton() {
  return el("ul", { class: "grid skeleton", "aria-hidden": "true" }, Array.from({ length: 15 }, () => el("li")));
}
