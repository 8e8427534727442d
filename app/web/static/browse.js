// The browse page: a grid of images under a search, filters and a sort order, all of it in the address.

import { byId, el, isTyping, number, plural, problemBox, spoken } from "./dom.js";
import { loadFacets, renderFacets } from "./facets.js";
import { renderChips, setUpFieldFilter } from "./filters.js";
import { MAX_CASES, Result, rememberWalk } from "./result.js";
import { nameInAddress, readState, writeState } from "./state.js";
import { emptyView, hitView, skeleton, tile } from "./tiles.js";

const PAGE = 40;
const FORMATS = [["json", "JSON"], ["jsonl", "JSONL"], ["csv", "CSV"], ["parquet", "Parquet"], ["zip", "ZIP of images"]];

const [box, results, status, problem, more, moreProblem] = ["q", "results", "status", "problem", "more", "more-problem"].map(byId);
let state = readState(location.search);
let current = null;
let stop = new AbortController();

async function show() {
  stop.abort();
  stop = new AbortController();
  const { signal } = stop;
  const mine = { result: new Result(state, { signal }), images: [], signal, isShown: false, counts: null };
  current = mine;
  box.value = state.q;
  setSort();
  showFilters();
  problem.replaceChildren();
  moreProblem.replaceChildren();
  more.hidden = true;
  results.setAttribute("aria-busy", "true");
  status.textContent = state.q ? "Searching …" : "Loading the images …";
  if (!results.childElementCount) results.replaceChildren(skeleton());
  showCounts(mine);
  try {
    const groups = await mine.result.next(Math.max(PAGE, state.shown));
    if (signal.aborted) return;
    results.replaceChildren();
    mine.isShown = true;
    append(groups);
    say();
    comeBack();
    showExports(mine);
  } catch (error) {
    fail(error, signal);
  }
}

/** What stood here was of another state: nothing of it stays beside a sentence about this one. */
function fail(error, signal) {
  if (signal.aborted || error.name === "AbortError") return;
  current.isShown = false;
  results.setAttribute("aria-busy", "false");
  results.replaceChildren();
  byId("exports").replaceChildren();
  status.textContent = "";
  more.hidden = true;
  const notice = problemBox(error, show);
  if (state.filters.length || state.q || state.sort) {
    const reset = el("button", { type: "button", text: "Start again without filters" });
    reset.addEventListener("click", () => go({ q: "", filters: [], sort: "" }));
    notice.append(reset);
  }
  problem.replaceChildren(notice);
}

function showFilters() {
  const count = state.filters.length;
  byId("filters-toggle").textContent = count ? `Filters (${count})` : "Filters";
  renderChips(byId("chips"), state.filters, (filters) => go({ filters }), status);
}

/** The counts beside the images. Without them there still are images, so their failure is said in their place. */
async function showCounts(mine) {
  const target = byId("facets");
  target.setAttribute("aria-busy", "true");
  try {
    const counts = await loadFacets(mine.result, { signal: mine.signal });
    if (mine.signal.aborted) return;
    mine.counts = counts;
    renderFacets(target, counts, state.filters, (filters) => go({ filters }));
  } catch (error) {
    if (mine.signal.aborted || error.name === "AbortError") return;
    const isRefused = error.status >= 400 && error.status < 429; // so are the images, whose sentence stands above
    target.replaceChildren(isRefused ? "" : problemBox({ message: `The counts are missing. ${error.message}` }, () => showCounts(mine)));
  }
  target.setAttribute("aria-busy", "false");
  say();
  remember();
}

function say() {
  const { isShown, images, counts, result } = current;
  if (!isShown) return;
  const query = state.q ? ` for “${state.q}”` : "";
  const cut = result.truncated ? ` The best ${number(MAX_CASES)} cases are counted; add words or filters for fewer.` : "";
  let found = result.total === null ? `${plural(images.length, "image")} shown` : plural(result.total, "image");
  if (counts) found = `${plural(counts.total, "image")} of ${plural(counts.cases, "case")}`;
  status.textContent = images.length ? `${found}${query}.${cut}` : "Nothing found.";
  byId("filters-done").textContent = images.length ? `Show ${found.split(" of ")[0].replace(" shown", "")}` : "Nothing found: back";
}

async function showExports({ images, result, signal }) {
  const target = byId("exports");
  if (!images.length) return target.replaceChildren();
  let params;
  try {
    params = (await result.query()) ?? [];
  } catch (error) {
    if (!signal.aborted) target.replaceChildren(el("span", { class: "muted", text: `No export: ${error.message}` }));
    return null;
  }
  if (signal.aborted) return null;
  if (state.sort) params.push(["sort", state.sort]);
  const links = FORMATS.map(([format, text]) => {
    const query = new URLSearchParams([...params, ["format", format]]);
    return el("a", { href: `/export?${query}`, download: "", text, data: { format } });
  });
  // An export knows no order by score.
  return target.replaceChildren(el("span", { class: "muted", text: result.isRanked ? "Export, by case" : "Export" }), ...links);
}

function remember() {
  const { images, result, counts } = current;
  if (images.length) rememberWalk(state, images, result.done, counts?.total ?? result.total);
}

function append(groups) {
  results.setAttribute("aria-busy", "false");
  const { images, result } = current;
  const isLazy = images.length > 0;
  const fresh = groups.flatMap((group) => group.images);
  images.push(...fresh.map((image) => image.image));
  if (!images.length) results.replaceChildren(emptyView(state, go));
  else if (result.isRanked) results.append(...groups.map((group) => hitView(group, state)));
  else {
    const grid = results.querySelector(".grid") ?? results.appendChild(el("ul", { class: "grid" }));
    grid.append(...fresh.map((image, index) => tile(image, state, { hit: result.hits.get(image.u_id), isLazy: isLazy || index >= PAGE })));
  }
  more.hidden = result.done;
  remember();
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

/** Who comes back to this entry of the history finds the place that was left: the images are there only later. */
function keepPlace() {
  history.replaceState({ top: scrollY }, "");
}

/** The place that was left, or the image that the address names. */
function comeBack() {
  if (history.state?.top) return scrollTo(0, history.state.top);
  const name = nameInAddress();
  const found = name && results.querySelector(`.tile[data-image="${CSS.escape(name)}"]`);
  if (!found) return null;
  found.scrollIntoView({ block: "center" });
  return found.focus({ preventScroll: true });
}

function go(change) {
  keepPlace();
  state = { ...state, shown: 0, ...change };
  history.pushState(null, "", `/${writeState(state)}`);
  show();
}

async function showMore() {
  const { result, signal } = current;
  more.disabled = true;
  more.textContent = "Loading …";
  moreProblem.replaceChildren();
  try {
    const before = current.images.length;
    const groups = await result.next(PAGE);
    if (signal.aborted) return;
    append(groups);
    say();
    state = { ...state, shown: current.images.length };
    history.replaceState(null, "", `/${writeState(state)}`);
    // The keyboard goes on with the first new image.
    results.querySelectorAll(".tile")[before]?.focus({ preventScroll: true });
  } catch (error) {
    if (!signal.aborted && error.name !== "AbortError") moreProblem.replaceChildren(problemBox(error));
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

/** Where an arrow key leads; into the grid from the search box with ↓, and with → while nothing has the focus. */
function target(key) {
  const tiles = [...results.querySelectorAll(".tile")];
  const from = document.activeElement;
  if (from?.classList.contains("tile")) return neighbour(tiles, from, key);
  const enters = (from === box && key === "ArrowDown") || (from === document.body && key === "ArrowRight");
  return enters ? tiles.find((each) => each.getBoundingClientRect().top >= 0) : null;
}

function onKey(event) {
  if (event.target === box && event.key === "Escape") {
    // The browser would empty the box, while its words go on to be searched for.
    event.preventDefault();
    box.value = state.q;
    box.blur();
  } else if (event.key === "/" && !isTyping(event)) {
    event.preventDefault();
    searchFor();
  } else if (/^Arrow/.test(event.key) && (event.target === box || !isTyping(event))) {
    const next = target(event.key);
    if (!next) return;
    event.preventDefault();
    next.focus();
  }
}

function searchFor() {
  box.focus();
  box.select();
}

function fillSort(catalogue) {
  const names = [...catalogue.images.values()].filter((field) => field.sortable && field.name !== "image");
  const options = names.flatMap(({ name }) => [name, `-${name}`]);
  byId("sort").append(...options.map((value) => el("option", { value, text: sortText(value) })));
  setSort();
}

function openFilters(isOpen) {
  byId("filters-toggle").setAttribute("aria-expanded", String(isOpen));
  byId("filters").classList.toggle("open", isOpen);
}

function start() {
  byId("sort").append(el("option", { value: "", text: "by case" }));
  byId("search").addEventListener("submit", (event) => {
    event.preventDefault();
    go({ q: box.value.trim() });
  });
  byId("sort").addEventListener("change", () => go({ sort: byId("sort").value }));
  more.addEventListener("click", showMore);
  results.addEventListener("click", keepPlace);
  byId("filters-toggle").addEventListener("click", (event) => openFilters(event.currentTarget.getAttribute("aria-expanded") !== "true"));
  byId("filters-done").addEventListener("click", () => {
    openFilters(false);
    status.focus({ preventScroll: true });
    byId("filters-toggle").scrollIntoView();
  });
  addEventListener("popstate", () => {
    const wanted = readState(location.search);
    if (writeState(wanted) === writeState(state)) return; // a link inside of the page
    state = wanted;
    show();
  });
  document.addEventListener("keydown", onKey);
  if (nameInAddress() === "q") searchFor();
  const shown = show();
  const addFilter = (filter) => go({ filters: [...state.filters.filter(([name]) => name !== filter[0]), filter] });
  setUpFieldFilter(addFilter).then(fillSort).catch(() => {
    // The images are shown without this form; `show` has said what is wrong if they are not.
    byId("field-filter").hidden = true;
  });
  return shown;
}

start();
