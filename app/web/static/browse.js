// The browse page: a grid of images under a search, filters and a sort order, all of it in the address.

import { byId, el, isTyping, number, plural, problemBox, spoken } from "./dom.js";
import { loadFacets, renderFacets } from "./facets.js";
import { renderChips, setUpFieldFilter } from "./filters.js";
import { MAX_CASES, Result, rememberWalk } from "./result.js";
import { caseAddress, readState, writeState } from "./state.js";

const PAGE = 40;
const THUMBNAIL = 256;
const FORMATS = [["json", "JSON"], ["jsonl", "JSONL"], ["csv", "CSV"], ["parquet", "Parquet"], ["zip", "ZIP of images"]];

const [results, status, problem, more] = ["results", "status", "problem", "more"].map(byId);
let state = readState(location.search);
let current = null;
let stop = new AbortController();

async function show() {
  stop.abort();
  stop = new AbortController();
  const { signal } = stop;
  const result = new Result(state, { signal });
  current = { result, images: [], signal };
  byId("q").value = state.q;
  setSort();
  renderChips(byId("chips"), state.filters, (filters) => go({ filters }));
  problem.replaceChildren();
  more.hidden = true;
  results.setAttribute("aria-busy", "true");
  status.textContent = state.q ? "Searching …" : "Loading the images …";
  if (!results.childElementCount) results.replaceChildren(skeleton());
  try {
    const counted = showCounts(result, signal);
    counted.catch(() => {}); // heard of below; the images may fail first
    const groups = await result.next(Math.max(PAGE, state.shown));
    if (signal.aborted) return;
    results.replaceChildren();
    append(groups);
    await counted;
  } catch (error) {
    fail(error, signal);
  }
}

function fail(error, signal) {
  if (signal.aborted || error.name === "AbortError") return;
  results.setAttribute("aria-busy", "false");
  results.querySelector(".skeleton")?.remove();
  status.textContent = "";
  more.hidden = true;
  const box = problemBox(error, show);
  if (state.filters.length || state.q) {
    const reset = el("button", { type: "button", text: "Start again without filters" });
    reset.addEventListener("click", () => go({ q: "", filters: [], sort: "" }));
    box.append(reset);
  }
  problem.replaceChildren(box);
}

async function showCounts(result, signal) {
  const counts = await loadFacets(result, { signal });
  if (signal.aborted) return;
  renderFacets(byId("facets"), counts, state.filters, (filters) => go({ filters }));
  byId("facets").setAttribute("aria-busy", "false");
  const found = `${plural(counts.total, "image")} of ${plural(counts.cases, "case")}`;
  const cut = result.truncated ? ` The best ${number(MAX_CASES)} cases are counted; add words or filters for fewer.` : "";
  status.textContent = counts.total ? `${found}${state.q ? ` for “${state.q}”` : ""}.${cut}` : "Nothing found.";
  current.total = counts.total;
  if (counts.total) await showExports(result);
  else byId("exports").replaceChildren();
  remember();
}

async function showExports(result) {
  const params = (await result.query()) ?? [];
  const links = FORMATS.map(([format, text]) => {
    const query = new URLSearchParams([...params, ["format", format]]);
    return el("a", { href: `/export?${query}`, download: "", text, data: { format } });
  });
  byId("exports").replaceChildren(el("span", { class: "muted", text: "Export" }), ...links);
}

function remember() {
  const { images, result, total } = current;
  if (images.length) rememberWalk(state, images, result.done, total ?? result.total);
}

function append(groups) {
  results.setAttribute("aria-busy", "false");
  const fresh = groups.flatMap((group) => group.images);
  current.images.push(...fresh.map((image) => image.image));
  if (!current.images.length) results.replaceChildren(empty());
  else if (current.result.isRanked) results.append(...groups.map(hitView));
  else {
    const grid = results.querySelector(".grid") ?? results.appendChild(el("ul", { class: "grid" }));
    grid.append(...groups.flatMap((group) => group.images).map(tile));
  }
  more.hidden = current.result.done;
  remember();
}

function empty() {
  const hints = [];
  if (state.q) hints.push("Use fewer or other words. A search looks for word stems: “ureters” finds “ureter”.");
  if (state.q.includes('"')) hints.push("Leave out the quotation marks: words in them must stand side by side.");
  if (state.filters.length) hints.push("Remove a filter; those that are active stand above.");
  return el(
    "div",
    { class: "notice" },
    el("p", { text: "No image fits." }),
    el("ul", {}, hints.map((text) => el("li", { text }))),
  );
}

function skeleton() {
  return el("ul", { class: "grid skeleton", "aria-hidden": "true" }, Array.from({ length: 15 }, () => el("li")));
}

function tile(image) {
  const scale = THUMBNAIL / Math.max(image.width, image.height);
  const picture = el("img", {
    src: `/images/${encodeURIComponent(image.image)}/thumbnail?width=${THUMBNAIL}`,
    width: Math.max(1, Math.round(image.width * Math.min(1, scale))),
    height: Math.max(1, Math.round(image.height * Math.min(1, scale))),
    alt: "",
    loading: current.images.length > PAGE ? "lazy" : "eager",
    decoding: "async",
  });
  const line = [image.modality, image.plane ?? "plane unknown", image.location ?? "location unknown"];
  const caption = image.caption
    ? el("span", { class: "caption", text: image.caption })
    : el("span", { class: "caption muted", text: "no caption" });
  const words = el("span", { class: "line" }, el("b", { text: line[0] }), ` ${line[1]}, ${line[2]}`);
  const link = el("a", { class: "tile", href: caseAddress(image.image, state) });
  link.append(el("span", { class: "frame" }, picture), words, caption);
  return el("li", {}, link);
}

function hitView({ hit, images }) {
  const matches = [...hit.matches, ...hit.images.flatMap((image) => image.matches)].slice(0, 3);
  const title = el("a", { href: caseAddress(images[0].image, state), text: hit.case.title ?? hit.case.u_id });
  return el(
    "article",
    { class: "hit" },
    el("h3", {}, title, el("span", { class: "muted small", text: ` ${hit.case.u_id}` })),
    matches.map(snippet),
    el("ul", { class: "grid" }, images.map(tile)),
  );
}

function snippet(match) {
  const line = el("p", { class: "snippet small" }, el("span", { class: "muted", text: `${spoken(match.field)}: ` }));
  // The API counts characters, JavaScript counts UTF-16 units: they differ outside of the basic plane.
  const characters = [...match.snippet];
  let position = 0;
  for (const [start, end] of match.ranges) {
    line.append(characters.slice(position, start).join(""));
    line.append(el("mark", { text: characters.slice(start, end).join("") }));
    position = end;
  }
  line.append(characters.slice(position).join(""));
  return line;
}

function setSort() {
  const select = byId("sort");
  if (state.sort && ![...select.options].some((option) => option.value === state.sort)) {
    select.append(el("option", { value: state.sort, text: sortText(state.sort) }));
  }
  if (select.options[0]) select.options[0].textContent = state.q ? "by relevance" : "by case";
  select.value = state.sort;
}

function sortText(sort) {
  const name = sort.replace(/^-/, "");
  return `${spoken(name)}, ${sort.startsWith("-") ? "descending" : "ascending"}`;
}

function go(change) {
  state = { ...state, shown: 0, ...change };
  history.pushState(null, "", `/${writeState(state)}`);
  show();
}

async function showMore() {
  const { result, signal } = current;
  more.disabled = true;
  more.textContent = "Loading …";
  try {
    const before = current.images.length;
    const groups = await result.next(PAGE);
    if (signal.aborted) return;
    append(groups);
    state = { ...state, shown: current.images.length };
    history.replaceState(null, "", `/${writeState(state)}`);
    // The keyboard goes on with the first new image.
    results.querySelectorAll(".tile")[before]?.focus({ preventScroll: true });
  } catch (error) {
    fail(error, signal);
  } finally {
    more.disabled = false;
    more.textContent = "Show more";
  }
}

/** The tile that an arrow key leads to: left and right in order, up and down to the nearest in the next row. */
function neighbour(tiles, from, key) {
  const index = tiles.indexOf(from);
  if (key === "ArrowRight") return tiles[index + 1];
  if (key === "ArrowLeft") return tiles[index - 1];
  const here = from.getBoundingClientRect();
  const isDown = key === "ArrowDown";
  const ahead = isDown ? tiles.slice(index + 1) : tiles.slice(0, index).reverse();
  const row = ahead.find((other) => (isDown ? 1 : -1) * (other.getBoundingClientRect().top - here.top) > 4);
  if (!row) return null;
  const top = row.getBoundingClientRect().top;
  const inRow = ahead.filter((other) => Math.abs(other.getBoundingClientRect().top - top) < 4);
  const distance = (other) => Math.abs(other.getBoundingClientRect().left - here.left);
  return inRow.reduce((best, other) => (distance(other) < distance(best) ? other : best));
}

function onKey(event) {
  if (event.key === "Escape" && event.target === byId("q")) {
    byId("q").blur();
    if (state.q && !byId("q").value) go({ q: "" });
    return;
  }
  if (isTyping(event)) return;
  if (event.key === "/") {
    event.preventDefault();
    byId("q").focus();
    byId("q").select();
  } else if (/^Arrow/.test(event.key) && document.activeElement?.classList.contains("tile")) {
    const target = neighbour([...results.querySelectorAll(".tile")], document.activeElement, event.key);
    if (target) {
      event.preventDefault();
      target.focus();
    }
  }
}

function fillSort(catalogue) {
  const names = [...catalogue.images.values()].filter((field) => field.sortable && field.name !== "image");
  const options = names.flatMap(({ name }) => [name, `-${name}`]);
  byId("sort").append(...options.map((value) => el("option", { value, text: sortText(value) })));
  setSort();
}

function start() {
  byId("sort").append(el("option", { value: "", text: "by case" }));
  byId("search").addEventListener("submit", (event) => {
    event.preventDefault();
    go({ q: byId("q").value.trim() });
  });
  byId("sort").addEventListener("change", () => go({ sort: byId("sort").value }));
  more.addEventListener("click", showMore);
  const toggle = byId("filters-toggle");
  toggle.addEventListener("click", () => {
    const isOpen = toggle.getAttribute("aria-expanded") !== "true";
    toggle.setAttribute("aria-expanded", String(isOpen));
    byId("filters").classList.toggle("open", isOpen);
  });
  addEventListener("popstate", () => {
    state = readState(location.search);
    show();
  });
  document.addEventListener("keydown", onKey);
  const shown = show();
  const addFilter = (filter) => go({ filters: [...state.filters.filter(([name]) => name !== filter[0]), filter] });
  setUpFieldFilter(addFilter).then(fillSort).catch(() => {
    // The images are shown without this form; `show` has said what is wrong if they are not.
    byId("field-filter").hidden = true;
  });
  return shown;
}

start();
