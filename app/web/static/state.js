// What the browse page shows, as the query of its address: q, mode, sort, view, quiz, shown, and one parameter per filter.
import { at } from "./address.js";


// Parameters with a meaning of their own in the API or in the pages; as filters they could only do harm.
const RESERVED = new Set([
  ..."q mode sort view quiz shown".split(" "),
  ..."limit cursor fields expand raw offset of format".split(" "),
]);

/** How many cases or images the browse page shows at once. */
export const PAGE_SIZES = { cases: 30, images: 40 };

export function readState(search) {
  const params = new URLSearchParams(search);
  return {
    q: (params.get("q") ?? "").trim(),
    mode: params.get("mode") ?? "",
    sort: params.get("sort") ?? "",
    view: params.get("view") === "images" ? "images" : "cases",
    quiz: params.get("quiz") === "1",
    shown: Math.min(Number.parseInt(params.get("shown") ?? "0", 10) || 0, 1000),
    filters: [...params].filter(([name, value]) => !RESERVED.has(name) && value !== ""),
  };
}

/** A state without search, filters or order. */
export const EMPTY = readState("");

/** The query string of a state, with its question mark; empty for the default state. */
export function writeState({ q, mode, sort, view, quiz, shown, filters }) {
  const params = new URLSearchParams();
  if (q) params.set("q", q);
  if (q && mode) params.set("mode", mode);
  for (const [name, value] of filters) params.append(name, value);
  if (sort) params.set("sort", sort);
  if (view === "images") params.set("view", view);
  if (quiz) params.set("quiz", "1");
  if (shown) params.set("shown", String(shown));
  const text = params.toString();
  return text ? `?${text}` : "";
}

/** What the fragment of the address names; nothing if that is no text. */
export function nameInAddress() {
  try {
    return decodeURIComponent(location.hash.slice(1));
  } catch {
    return "";
  }
}

/** The case of an image. */
export const caseOf = (image) => image.split("_")[0].toUpperCase();

/** The address of an image on the page of its case, or of a case alone, inside a result. */
export function caseAddress(image, state) {
  const fragment = image.includes("_") ? `#${encodeURIComponent(image)}` : "";
  return at(`/pages/case/${encodeURIComponent(caseOf(image))}${writeState({ ...state, shown: 0 })}${fragment}`);
}

/** The address of a result on the browse page, at the place of one of its images. */
export const resultAddress = (state, image) => at(`/${writeState(state)}${image ? `#${encodeURIComponent(image)}` : ""}`);

/** The name of a filter's field: "age" of "age__gte". */
export const fieldOf = (parameter) => parameter.split("__")[0];
