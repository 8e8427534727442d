// The browse page: cases or images under a search, filters and a sort order, all of it in the address.

import { at } from "./address.js";
import { getJson, load } from "./api.js";
import { byId, el, isTyping, number, plural, problemBox, spoken } from "./dom.js";
import { loadFacets, renderFacets } from "./facets.js";
import { renderChips, setUpFieldFilter } from "./filters.js";
import { setUpMenu } from "./menu.js";
import { CASE_FIELDS, isByWords, MAX_CASES, Result } from "./result.js";
import { caseAddress, caseOf, nameInAddress, PAGE_SIZES, readState, writeState } from "./state.js";
import { caseCard, emptyView, hitView, imageTile, nameCase, searchNotes, skeleton } from "./tiles.js";
import { rememberWalk } from "./walk.js";

const EAGER = 18; // images that are asked for at once
const SORTS = [
  ["", "Case id"],
  ["-image_count", "Most images first"],
  ["age", "Youngest first"],
  ["-age", "Oldest first"],
  ["location", "Location"],
  ["-u_id", "Case id, descending"],
];
const ID = /^(mpx\d{4,8})(_synpic\d{2,5})?$/i;

const [box, results, status, problem, more, moreProblem] = ["q", "results", "status", "problem", "more", "more-problem"].map(byId);
let state = readState(location.search);
let current = null;
const refreshExport = setUpMenu(byId("export"), async () => new (await load("exports")).ExportMenu(byId("export"), { current: () => [current.result, state] }));
let stop = new AbortController();

async function show() {
  stop.abort();
  stop = new AbortController();
  const { signal } = stop;
  const mine = { result: new Result(state, { signal }), images: [], signal, isShown: false, counts: null };
  current = mine;
  box.value = state.q;
  setSort();
  showSwitches();
  byId("mode").value = state.mode;
  showFilters();
  problem.replaceChildren();
  moreProblem.replaceChildren();
  byId("search-notes").replaceChildren();
  more.hidden = true;
  results.setAttribute("aria-busy", "true");
  status.textContent = state.q ? "Searching …" : "Loading …";
  if (!results.childElementCount) results.replaceChildren(skeleton());
  showCounts(mine);
  try {
    const found = await next(mine, Math.max(PAGE_SIZES[state.view], state.shown));
    if (signal.aborted) return;
    results.replaceChildren();
    mine.isShown = true;
    append(mine, found);
    byId("search-notes").replaceChildren(...searchNotes(mine.result.about, state, go));
    say();
    comeBack();
    offerExport(mine.images.length > 0);
  } catch (error) {
    fail(error, signal);
  }
}

const next = ({ result }, size) => (state.view === "cases" ? result.nextCases(size) : result.nextImages(size));

/** What stood here was of another state: nothing of it stays beside a sentence about this one. */
function fail(error, signal) {
  if (signal.aborted || error.name === "AbortError") return;
  current.isShown = false;
  results.setAttribute("aria-busy", "false");
  results.replaceChildren();
  offerExport(false);
  status.textContent = "";
  more.hidden = true;
  const notice = problemBox(error, show);
  if (state.filters.length || state.q || state.sort) {
    const reset = el("button", { type: "button", text: "Clear the search and the filters" });
    reset.addEventListener("click", () => go({ q: "", filters: [], sort: "" }));
    notice.append(reset);
  }
  problem.replaceChildren(notice);
}

/** There is nothing to export of an empty result; an open menu goes on with the new one. */
function offerExport(isOffered) {
  byId("export").hidden = !isOffered;
  if (!isOffered) byId("export").open = false;
  refreshExport();
}

function showSwitches() {
  for (const view of ["cases", "images"]) byId(`view-${view}`).setAttribute("aria-pressed", String(state.view === view));
  byId("quiz").setAttribute("aria-pressed", String(state.quiz));
  document.body.classList.toggle("quiz", state.quiz);
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
    renderFacets(target, counts, state.filters, (update) => go({ filters: update(state.filters) }));
  } catch (error) {
    if (mine.signal.aborted || error.name === "AbortError") return;
    const isRefused = error.status >= 400 && error.status < 429; // so are the images, whose sentence stands above
    target.replaceChildren(isRefused ? "" : problemBox({ message: `The counts cannot be shown. ${error.message}` }, () => showCounts(mine)));
  }
  target.setAttribute("aria-busy", "false");
  say();
  remember(mine);
}

function say() {
  const { isShown, images, counts, result } = current;
  if (!isShown) return;
  const query = state.q ? ` for “${state.q}”` : "";
  const cut = result.truncated ? ` Only the best ${number(MAX_CASES)} cases are counted; add words or filters to narrow the result.` : "";
  const isCases = state.view === "cases";
  let found = `${plural(images.length, isCases ? "case" : "image")} shown`;
  if (counts) {
    const [cases, all] = [plural(counts.cases, "case"), plural(counts.total, "image")];
    found = isCases ? `${cases} with ${all}` : `${all} of ${cases}`;
  }
  status.textContent = images.length ? `${found}${query}.${cut}` : "No results.";
  byId("filters-done").textContent = images.length ? `Show ${found.split(/ of | with /)[0].replace(" shown", "")}` : "No results: close the filters";
}

function remember({ images, result, counts }) {
  if (images.length) rememberWalk(state, images, result.done, counts?.cases ?? null);
}

function append(mine, found) {
  results.setAttribute("aria-busy", "false");
  const { images, result } = mine;
  const isLazy = images.length > 0;
  const isCases = state.view === "cases";
  images.push(...found.map((each) => (isCases ? each.cover : each).image));
  if (!images.length) results.replaceChildren(emptyView(state, go));
  else {
    const isList = isCases && state.q && !state.quiz && !isByWords(state);
    const grid = results.querySelector("ul.shown") ?? results.appendChild(el("ul", { class: `shown ${isList ? "hits" : "grid"} of-${state.view}` }));
    const options = (index) => ({ isLazy: isLazy || index >= EAGER });
    if (isList) grid.append(...found.map((each) => hitView(each, state)));
    else if (isCases) grid.append(...found.map((each, index) => caseCard(each, state, options(index))));
    else grid.append(...found.map((image, index) => imageTile(image, state, { hit: result.hits.get(image.u_id), ...options(index) })));
    if (isCases && !isList && !state.quiz) nameCases(mine, found);
  }
  more.hidden = result.done;
  remember(mine);
}

/** The records of cases, by id; the API answers a hundred at once. */
async function recordsOf(result, found) {
  const ids = found.map((each) => each.u_id);
  const starts = ids.map((_, index) => index).filter((index) => index % 100 === 0);
  const pages = await Promise.all(
    starts.map((start) => {
      const params = [...result.conditions(ids.slice(start, start + 100)), ["fields", CASE_FIELDS], ["limit", 100]];
      return getJson(at("/cases"), params, { signal: result.signal });
    }),
  );
  return new Map(pages.flatMap((page) => page.items).map((record) => [record.u_id, record]));
}

/** The titles come with the records of the cases; the images do not wait for them. */
async function nameCases({ result, signal }, found) {
  const records = await recordsOf(result, found).catch(() => new Map());
  if (signal.aborted) return;
  for (const { u_id: uId, cover } of found) {
    const card = results.querySelector(`[data-case="${CSS.escape(uId)}"]`);
    if (card) nameCase(card, records.get(uId) ?? { u_id: uId, title: null, location: cover.location }, cover);
  }
}

function setSort() {
  const select = byId("sort");
  if (state.sort && ![...select.options].some((option) => option.value === state.sort)) {
    select.append(el("option", { value: state.sort, text: sortText(state.sort) }));
  }
  select.options[0].textContent = state.q ? "Relevance" : SORTS[0][1];
  // Images by words have the one order.
  select.disabled = isByWords(state);
  select.value = select.disabled ? "" : state.sort;
}

/** Words for an order that came with the address. */
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
  const found = name && (results.querySelector(`[data-image="${CSS.escape(name)}"]`) ?? results.querySelector(`[data-case="${CSS.escape(caseOf(name))}"]`));
  if (!found) return null;
  found.scrollIntoView({ block: "center" });
  return found.focus({ preventScroll: true });
}

function go(change) {
  keepPlace();
  state = { ...state, shown: 0, ...change };
  history.pushState(null, "", at(`/${writeState(state)}`));
  show();
}

async function showMore() {
  const mine = current;
  more.disabled = true;
  more.textContent = "Loading …";
  moreProblem.replaceChildren();
  try {
    const before = mine.images.length;
    const found = await next(mine, PAGE_SIZES[state.view]);
    if (mine.signal.aborted) return;
    append(mine, found);
    state.shown = mine.images.length;
    history.replaceState(null, "", at(`/${writeState(state)}`));
    say();
    // On with the keyboard where the new ones begin.
    results.querySelectorAll(".tile")[before]?.focus({ preventScroll: true });
  } catch (error) {
    if (!mine.signal.aborted && error.name !== "AbortError") moreProblem.replaceChildren(problemBox(error));
  } finally {
    more.disabled = false;
    more.textContent = "Show more";
  }
}

/** Search, or open the case whose id was typed. */
async function search(text) {
  const id = text.match(ID);
  if (!id) return go({ q: text });
  const path = id[2] ? at(`/images/${encodeURIComponent(text)}`) : at(`/cases/${encodeURIComponent(text)}`);
  try {
    const found = await getJson(path);
    return location.assign(caseAddress(found.image ?? found.images[0]?.image ?? found.u_id, { ...state, q: "", filters: [], sort: "" }));
  } catch (error) {
    problem.replaceChildren(problemBox(error));
    return box.select();
  }
}

async function openRandom() {
  problem.replaceChildren();
  try {
    const { randomCase } = await load("quiz");
    const image = await randomCase(current.result);
    if (image) location.assign(caseAddress(image, { ...state, quiz: true }));
    else problem.replaceChildren(el("p", { class: "notice", text: "No cases match. Remove a filter, then try again." }));
  } catch (error) {
    problem.replaceChildren(problemBox(error, openRandom));
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
  } else if (event.key === "q" && !isTyping(event)) {
    event.preventDefault();
    go({ quiz: !state.quiz });
  } else if (/^Arrow/.test(event.key) && (event.target === box || !isTyping(event))) {
    const found = target(event.key);
    if (!found) return;
    event.preventDefault();
    found.focus();
  }
}

function openFilters(isOpen) {
  byId("filters-toggle").setAttribute("aria-expanded", String(isOpen));
  byId("filters").classList.toggle("open", isOpen);
}

function start() {
  byId("sort").append(...SORTS.map(([value, text]) => el("option", { value, text })));
  byId("search").addEventListener("submit", (event) => {
    event.preventDefault();
    search(box.value.trim());
  });
  byId("sort").addEventListener("change", () => go({ sort: byId("sort").value }));
  for (const view of ["cases", "images"]) byId(`view-${view}`).addEventListener("click", () => state.view !== view && go({ view }));
  byId("mode").addEventListener("change", () => {
    const mode = byId("mode").value;
    go({ mode, q: box.value.trim(), ...(mode === "images" && { view: "images" }) });
  });
  setUpMenu(byId("saved"), async () => new (await load("saved")).SavedMenu(byId("saved"), { state: () => state }));
  byId("quiz").addEventListener("click", () => go({ quiz: !state.quiz }));
  byId("random").addEventListener("click", openRandom);
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
  const shown = show();
  const addFilter = (filter) => go({ filters: [...state.filters.filter(([name]) => name !== filter[0]), filter] });
  setUpFieldFilter(addFilter).catch(() => {
    // The images are shown without this form; `show` has said what is wrong if they are not.
    byId("field-filter").hidden = true;
  });
  return shown;
}

start();
