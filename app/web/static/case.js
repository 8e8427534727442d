// The case page: a stack of images beside the texts. The address has the image in its fragment, the result that ← and →
// walk through in its query. Steps replace the history entry: Back leaves the case.

import { at } from "./address.js";
import { getJson, load, Problem } from "./api.js";
import { showBookmark, toggleBookmark } from "./bookmarks.js";
import { caseLine, caseText, imageCaption, imageFacts } from "./casetext.js";
import { byId, el, isTyping, number, onPlainClick, problemBox, thumbnail } from "./dom.js";
import { caseAddress, EMPTY, nameInAddress, PAGE_SIZES, readState, resultAddress, writeState } from "./state.js";
import { Viewer } from "./viewer.js";
import { place } from "./walk.js";

const QUIET_MS = 300; // until an image counts as looked at

const viewer = new Viewer(byId("viewer"), { onStep: step, onPane: showWords });
let quiz = null;
let annotations = null;
let state = readState(location.search);
let shown = null; // the case
let image = null; // in the first pane
let attended = null; // whose predictions and annotations are shown
let second = null; // in the second
let walk = { previous: null, next: null };
let stop = new AbortController();
let quiet = 0;

const caseInAddress = () => decodeURIComponent(location.pathname.split("/").at(-1));
const level = () => (state.quiz ? quiz?.level ?? 0 : 3);

async function show() {
  stop.abort();
  stop = new AbortController();
  const { signal } = stop;
  const uId = caseInAddress();
  byId("problem").replaceChildren();
  byId("quiz-toggle").setAttribute("aria-pressed", String(state.quiz));
  try {
    if (shown?.u_id.toLowerCase() !== uId.toLowerCase()) {
      byId("case").setAttribute("aria-busy", "true");
      const answer = await getJson(at(`/cases/${encodeURIComponent(uId)}`), [], { signal });
      if (signal.aborted) return;
      if (!answer.images.length) throw new Problem("This case has no images.");
      [shown, image] = [answer, null];
      await begin();
      if (signal.aborted) return;
    }
    const wanted = nameInAddress().toLowerCase();
    showImage(shown.images.find((each) => each.image.toLowerCase() === wanted) ?? shown.images[0]);
    byId("loading").hidden = true;
    byId("case").hidden = false;
    byId("case").classList.remove("unknown");
    byId("case").setAttribute("aria-busy", "false");
    showWalk(signal);
  } catch (error) {
    fail(error, signal);
  }
}

function fail(error, signal) {
  if (signal.aborted || error.name === "AbortError") return;
  const box = problemBox(error, show);
  box.append(el("a", { href: at("/"), class: "button", text: "Browse all cases" }));
  byId("problem").replaceChildren(box);
  byId("loading").hidden = true;
  byId("case").hidden = shown?.u_id.toLowerCase() !== caseInAddress().toLowerCase();
}

/** A case that was not shown before. The quiz's panel is awaited: nothing moves later. */
async function begin() {
  viewer.reset();
  second = null;
  if (viewer.isComparing) viewer.compare(false);
  byId("compare").disabled = shown.images.length < 2;
  byId("strip").replaceChildren(...(shown.images.length > 1 ? shown.images.map(stripItem) : []));
  // Not at the level of the last case.
  if (quiz) quiz.level = 0;
  if (!state.quiz) quiz?.leave();
  showCase();
  if (state.quiz) await beginQuiz();
}

async function beginQuiz() {
  const { Quiz } = await load("quiz").catch((error) => {
    byId("problem").replaceChildren(problemBox(error, beginQuiz));
    return {};
  });
  if (!Quiz) return;
  quiz ??= new Quiz(byId("quiz"), { onLevel: showCase, onRandom: openRandom });
  if (state.quiz) await quiz.begin(shown, pane);
}

/** The annotations of the image, once asked for. */
async function showAnnotations() {
  const isWanted = () => pane() && level() === 3 && byId("annotations-part").open;
  if (!isWanted()) return;
  const { Annotations } = await load("annotations").catch((error) => {
    byId("annotations").replaceChildren(problemBox(error, showAnnotations));
    return {};
  });
  if (!Annotations) return;
  annotations ??= new Annotations(byId("annotations"));
  if (isWanted()) annotations.show(pane()); // else quiz mode began meanwhile
}

/** What quiz mode lets be seen of the case. */
function showCase() {
  const isOpen = level() === 3;
  const title = isOpen ? shown.title ?? shown.u_id : "Unknown case";
  document.title = `${title} · MedPix service`;
  byId("title").textContent = title;
  byId("case-line").replaceChildren(...caseLine(shown, level()));
  byId("text").replaceChildren(...caseText(shown, level()));
  byId("beside").hidden = byId("similar-part").hidden = !isOpen;
  if (!isOpen) {
    for (const id of ["prediction", "similar"]) byId(id).replaceChildren();
    byId("similar").dataset.image = "";
    annotations?.clear();
  } else {
    showAnnotations();
  }
  showBookmark(byId("bookmark"), shown.u_id);
  showWords();
}

function stripItem(each, index) {
  const link = el("a", { href: caseAddress(each.image, state), data: { image: each.image } }, thumbnail(each.image, { width: 128 }), el("span", { class: "hidden", text: `Image ${index + 1}` }));
  return el("li", {}, onPlainClick(link, () => step(index - indexOf(pane()), viewer.active)));
}

const indexOf = (one) => shown.images.indexOf(one);
const pane = () => (viewer.active === 1 && second) || image;
const position = (one) => `Image ${number(indexOf(one) + 1)} of ${number(shown.images.length)}`;

/** What the corner of an image says. */
function labelOf(one) {
  const words = level() > 0 ? [one.modality, one.plane].filter(Boolean).join(", ") : "";
  return [position(one), words].filter(Boolean).join(" · ");
}

function showPane(one, index) {
  const words = [one.modality, one.plane, one.location].filter(Boolean).join(", ");
  const alt = level() > 1 ? one.caption ?? `${words}; no caption` : `${position(one)}; its caption is hidden in quiz mode`;
  viewer.show({ address: one.links.file, alt, width: one.width, height: one.height, label: labelOf(one) }, index);
}

function showImage(found) {
  image = found;
  showWords();
}

/** What was of the last image goes. */
function attend() {
  if (pane() === attended) return;
  attended = pane();
  byId("predict").disabled = false;
  byId("prediction").replaceChildren();
  byId("similar").replaceChildren(el("p", { class: "muted", text: "Searching …" }));
  byId("similar").dataset.image = "";
  clearTimeout(quiet);
  quiet = setTimeout(() => {
    sight.unobserve(byId("similar"));
    sight.observe(byId("similar"));
    preload();
    showAnnotations();
  }, QUIET_MS);
}

/** Fetch the neighbours in the stack. */
function preload() {
  const at = indexOf(pane());
  for (const near of [1, -1, 2, -2, 3]) {
    const one = shown.images[at + near];
    if (one) new Image().src = one.links.file;
  }
}

/** The words of the images shown. */
function showWords() {
  if (!image) return;
  showPane(image, 0);
  if (second) showPane(second, 1);
  const isOpen = level() > 1;
  const one = pane();
  byId("caption").replaceChildren(...(isOpen ? imageCaption(one) : [el("span", { class: "muted", text: "Caption hidden in quiz mode." })]));
  byId("image-facts").replaceChildren(...(isOpen ? imageFacts(one) : []));
  byId("image-facts").hidden = !isOpen;
  byId("download").href = one.links.file;
  byId("download").download = `${one.image}.png`;
  byId("open-predict").href = at(`/pages/predict?image=${encodeURIComponent(one.image)}`);
  showPlaceInStack();
  attend();
}

function showPlaceInStack() {
  const one = pane();
  const index = indexOf(one);
  byId("place").textContent = position(one);
  byId("previous").disabled = index === 0;
  byId("next").disabled = index + 1 === shown.images.length;
  const strip = byId("strip");
  for (const link of strip.querySelectorAll("a")) {
    if (link.dataset.image === one.image) link.setAttribute("aria-current", "true");
    else link.removeAttribute("aria-current");
    link.classList.toggle("other", viewer.isComparing && link.dataset.image === (one === image ? second : image)?.image);
  }
  const current = strip.querySelector("[aria-current]")?.parentElement;
  if (!current) return;
  // Only the strip scrolls, not the page.
  const [left, right] = [current.offsetLeft, current.offsetLeft + current.offsetWidth];
  if (left < strip.scrollLeft) strip.scrollLeft = left - 8;
  else if (right > strip.scrollLeft + strip.clientWidth) strip.scrollLeft = right - strip.clientWidth + 8;
}

/** Go on in the stack; returns whether there is an image. `isTry`: only say so. */
function step(delta, index, { isTry = false } = {}) {
  const from = index === 1 ? second : image;
  const found = shown && from && shown.images[indexOf(from) + delta];
  if (!found || isTry || found === from) return Boolean(found);
  if (index === 1) {
    second = found;
    showWords();
  } else {
    showImage(found);
    // Browsers limit changes of the address.
    clearTimeout(step.later);
    step.later = setTimeout(() => history.replaceState(history.state, "", caseAddress(image.image, state)), QUIET_MS / 2);
  }
  return true;
}

function compare() {
  const isOn = !viewer.isComparing;
  const at = indexOf(image);
  second = isOn ? shown.images[at + 1] ?? shown.images[at - 1] ?? null : null;
  if (isOn && !second) return;
  if (isOn) showPane(second, 1);
  viewer.compare(isOn);
  showWords();
}

/** Where the case stands in the result. */
async function showWalk(signal) {
  const uId = shown.u_id;
  const isAll = !state.q && !state.sort && !state.filters.length;
  byId("back").textContent = isAll ? (state.view === "images" ? "All images" : "All cases") : "Back to results";
  byId("back").href = resultAddress(state, image.image);
  let problem = "";
  const found = await place(state, uId).catch((error) => {
    problem = error.message;
    return null;
  });
  if (signal.aborted || shown?.u_id !== uId) return;
  walk = found ?? { index: -1, previous: null, next: null };
  const total = walk.total ? ` of ${number(walk.total)}` : "";
  byId("case-place").textContent = found ? `Case ${number(walk.index + 1)}${total}` : "";
  byId("case-place").title = problem;
  for (const name of ["previous", "next"]) {
    byId(`${name}-case`).hidden = !walk[name];
    if (walk[name]) byId(`${name}-case`).href = caseAddress(walk[name], state);
  }
  const shownThere = walk.isSeen && walk.index >= PAGE_SIZES[state.view] && state.view === "cases" ? walk.index + 1 : 0;
  byId("back").href = resultAddress({ ...state, shown: shownThere || state.shown }, image.image);
}

/** Another case of the result takes the place of this one. */
function go(name) {
  if (!name) return;
  clearTimeout(step.later);
  history.replaceState(null, "", caseAddress(name, state));
  show();
  scrollTo(0, 0);
}

function toggleQuiz() {
  state = { ...state, quiz: !state.quiz };
  history.replaceState(history.state, "", `${location.pathname}${writeState(state)}${location.hash}`);
  byId("quiz-toggle").setAttribute("aria-pressed", String(state.quiz));
  begin();
  showWalk(stop.signal);
}

async function openRandom() {
  byId("problem").replaceChildren();
  try {
    const [{ randomCase }, { Result }] = await Promise.all([load("quiz"), load("result")]);
    const found = await randomCase(new Result(state), shown?.u_id);
    if (!found) throw new Problem("No other case matches.");
    go(found);
  } catch (error) {
    byId("problem").replaceChildren(problemBox(error, openRandom));
  }
}

async function predict() {
  const [asked, { signal }] = [pane(), stop];
  byId("predict").disabled = true;
  const isShown = () => pane() === asked && level() === 3;
  try {
    const { showPredictions } = await load("casemodels");
    await showPredictions(byId("prediction"), asked, { withCaption: byId("with-caption").checked, signal, isShown, again: predict });
  } catch (error) {
    byId("prediction").replaceChildren(problemBox(error, predict));
  }
  byId("predict").disabled = false;
}

async function similar() {
  const target = byId("similar");
  const asked = pane();
  if (!asked || level() < 3 || target.dataset.image === asked.image) return;
  target.dataset.image = asked.image;
  target.setAttribute("aria-busy", "true");
  const isShown = () => pane() === asked && level() === 3;
  const isDone = await load("casemodels")
    .then(({ showSimilar }) => showSimilar(target, asked, { isShown, again: similar }))
    .catch((error) => target.replaceChildren(problemBox(error, similar)));
  if (pane() !== asked) return;
  if (!isDone) target.dataset.image = "";
  target.setAttribute("aria-busy", "false");
}

// Similar images cost a run of the model.
const sight = new IntersectionObserver((entries) => entries.some((entry) => entry.isIntersecting) && similar(), { rootMargin: "200px" });

function onKey(event) {
  if (isTyping(event) || !shown) return;
  if (viewer.onKey(event)) event.preventDefault();
  else if (event.shiftKey) return;
  else if (event.key === "ArrowLeft") go(walk.previous);
  else if (event.key === "ArrowRight") go(walk.next);
  else if (event.key === "c" && shown.images.length > 1) compare();
  else if (event.key === "q") toggleQuiz();
  else if (event.key === "n" && state.quiz) openRandom();
  else if (event.key === "Escape") location.assign(byId("back").href);
}

document.addEventListener("keydown", onKey);
byId("previous").addEventListener("click", () => step(-1, viewer.active));
byId("next").addEventListener("click", () => step(1, viewer.active));
for (const name of ["previous", "next"]) onPlainClick(byId(`${name}-case`), () => go(walk[name]));
byId("bookmark").addEventListener("click", () => {
  toggleBookmark(shown.u_id, level() === 3 ? shown.title : null);
  showBookmark(byId("bookmark"), shown.u_id);
});
byId("compare").addEventListener("click", compare);
byId("quiz-toggle").addEventListener("click", toggleQuiz);
byId("predict").addEventListener("click", predict);
byId("annotations-part").addEventListener("toggle", showAnnotations);
// To the image, not to the result.
byId("copy-link").addEventListener("click", async () => {
  const address = `${location.origin}${caseAddress(pane().image, { ...EMPTY, quiz: state.quiz })}`;
  const copy = await load("copy").catch(() => null);
  if (copy) copy.copyText(address, byId("copied"));
  else byId("copied").textContent = address;
});
addEventListener("popstate", () => {
  state = readState(location.search);
  show();
});
show();
