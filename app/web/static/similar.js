// Images of other cases that a model finds similar, as tiles.

import { el, thumbnail } from "./dom.js";
import { caseAddress, EMPTY } from "./state.js";

export const SIMILAR = 8; // images that the pages ask for

function similarTile(item) {
  const words = el("span", { class: "line" }, el("b", { text: item.modality }), ` ${item.location ?? "location unknown"}, ${Math.round(100 * item.similarity)}% similar`);
  const title = el("span", { class: "caption", text: item.diagnosis ?? item.title ?? item.caption ?? "" });
  // Outside of the result that is walked, so without its query.
  return el("li", {}, el("a", { class: "tile", href: caseAddress(item.image, EMPTY) }, thumbnail(item.image), words, title));
}

/** The tiles of an answer of /similar, with the model that compared. */
export function similarTiles(answer) {
  const about = `Compared by the embedding of ${answer.model.name}; 100% = identical.`;
  return [el("p", { class: "muted small", text: about }), el("ul", { class: "grid" }, answer.items.map(similarTile))];
}
