// What the browse page shows, as the query of its address: q, sort, shown, and one parameter per filter.

// Parameters with a meaning of their own in the API; as filters they could only do harm.
const RESERVED = new Set(["q", "sort", "shown", "limit", "cursor", "fields", "expand", "raw", "offset", "of", "format"]);

export function readState(search) {
  const params = new URLSearchParams(search);
  return {
    q: (params.get("q") ?? "").trim(),
    sort: params.get("sort") ?? "",
    shown: Math.min(Number.parseInt(params.get("shown") ?? "0", 10) || 0, 1000),
    filters: [...params].filter(([name, value]) => !RESERVED.has(name) && value !== ""),
  };
}

/** The query string of a state, with its question mark; empty for the default state. */
export function writeState({ q, sort, shown, filters }) {
  const params = new URLSearchParams();
  if (q) params.set("q", q);
  for (const [name, value] of filters) params.append(name, value);
  if (sort) params.set("sort", sort);
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

/** The address of an image on the page of its case, inside a result. */
export function caseAddress(image, state) {
  const uId = image.split("_")[0];
  return `/pages/case/${encodeURIComponent(uId)}${writeState({ ...state, shown: 0 })}#${encodeURIComponent(image)}`;
}

/** The address of a result on the browse page, at the place of one of its images. */
export const resultAddress = (state, image) => `/${writeState(state)}${image ? `#${encodeURIComponent(image)}` : ""}`;

/** The name of a filter's field: "age" of "age__gte". */
export const fieldOf = (parameter) => parameter.split("__")[0];
