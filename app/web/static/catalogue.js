// The fields that images and cases have, as GET /fields describes them.

import { at } from "./address.js";
import { getJson } from "./api.js";
import { fieldOf } from "./state.js";

let asked = null;

/** The catalogue, asked once. A failure is not kept: the next call asks again. */
export function loadCatalogue() {
  asked ??= getJson(at("/fields")).then(
    (answer) => ({
      images: new Map(answer.images.map((field) => [field.name, field])),
      cases: new Map(answer.cases.map((field) => [field.name, field])),
      aliases: answer.aliases.images ?? {},
    }),
    (error) => {
      asked = null;
      throw error;
    },
  );
  return asked;
}

/** Filters of images, and those that only cases have; an unknown one goes to the images, whose API says what is wrong. */
export async function splitFilters(filters) {
  if (!filters.length) return { ofImages: [], ofCases: [] };
  const { images, cases, aliases } = await loadCatalogue();
  const isCaseOnly = ([name]) => {
    const field = fieldOf(name);
    return cases.has(field) && !images.has(field) && !(field in aliases);
  };
  return { ofImages: filters.filter((f) => !isCaseOnly(f)), ofCases: filters.filter(isCaseOnly) };
}
