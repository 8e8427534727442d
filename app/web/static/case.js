// The case page: one image of a case at a time, with all that the dataset says; previous and next walk through
// the result that the address names. The image stands in the fragment, the result in the query.

import { getJson, Problem } from "./api.js";
import { caseLine, caseText, imageCaption, imageFacts } from "./casetext.js";
import { byId, el, isTyping, number, problemBox, searchOnSlash, spoken } from "./dom.js";
import { predictionView } from "./prediction.js";
import { place } from "./result.js";
import { caseAddress, nameInAddress, readState, resultAddress } from "./state.js";
import { Viewer } from "./viewer.js";

const SIMILAR = 8;
const PAGE = 40; // of the browse page

const viewer = new Viewer(byId("viewer"));
let state = readState(location.search);
let shown = null; // the case
let image = null; // of the case
let walk = { previous: null, next: null };
let stop = new AbortController();

const caseInAddress = () => decodeURIComponent(location.pathname.split("/").at(-1));
const path = (name) => `/images/${encodeURIComponent(name)}`;

async function show() {
  stop.abort();
  stop = new AbortController();
  const { signal } = stop;
  const uId = caseInAddress();
  byId("problem").replaceChildren();
  try {
    if (shown?.u_id.toLowerCase() !== uId.toLowerCase()) {
      byId("case").setAttribute("aria-busy", "true");
      const answer = await getJson(`/cases/${encodeURIComponent(uId)}`, [], { signal });
      if (signal.aborted) return;
      shown = answer;
      image = null;
      showCase();
    }
    const wanted = nameInAddress().toLowerCase();
    const found = shown.images.find((each) => each.image.toLowerCase() === wanted) ?? shown.images[0];
    if (!found) throw new Problem("This case has no images.");
    showImage(found, signal);
    byId("loading").hidden = true;
    byId("case").hidden = false;
    byId("case").classList.remove("unknown");
    byId("case").setAttribute("aria-busy", "false");
  } catch (error) {
    fail(error, signal);
  }
}

function fail(error, signal) {
  if (signal.aborted || error.name === "AbortError") return;
  const box = problemBox(error, show);
  box.append(el("a", { href: "/", class: "button", text: "Browse all images" }));
  byId("problem").replaceChildren(box);
  byId("loading").hidden = true;
  byId("case").hidden = shown?.u_id.toLowerCase() !== caseInAddress().toLowerCase();
}

function showCase() {
  const title = shown.title ?? shown.u_id;
  document.title = `${title} · MedPix service`;
  byId("title").textContent = title;
  byId("case-line").replaceChildren(...caseLine(shown));
  byId("strip").replaceChildren(...(shown.images.length > 1 ? shown.images.map(stripItem) : []));
  byId("text").replaceChildren(...caseText(shown));
}

function stripItem(each) {
  const picture = el("img", { src: `${path(each.image)}/thumbnail?width=128`, alt: "", width: 72, height: 72, loading: "lazy" });
  const name = [each.modality, each.plane].filter(Boolean).join(" ");
  const link = el("a", { href: caseAddress(each.image, state), title: name, data: { image: each.image } }, picture, el("span", { class: "hidden", text: `${name}, image ${each.image}` }));
  link.addEventListener("click", (event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    go(each.image);
  });
  return el("li", {}, link);
}

function showImage(found, signal) {
  const isSame = image?.image === found.image;
  image = found;
  const words = [image.modality, image.plane, image.location].filter(Boolean).join(", ");
  viewer.show(image.links.file, image.caption ?? `${words}; no caption`, image.width, image.height);
  for (const link of byId("strip").querySelectorAll("a")) {
    if (link.dataset.image === image.image) link.setAttribute("aria-current", "true");
    else link.removeAttribute("aria-current");
  }
  byId("strip").querySelector("[aria-current]")?.scrollIntoView({ block: "nearest", inline: "nearest" });
  byId("caption").replaceChildren(...imageCaption(image));
  byId("image-facts").replaceChildren(...imageFacts(image));
  showPlace(signal);
  if (isSame) return;
  byId("predict").disabled = false;
  byId("prediction").replaceChildren();
  byId("open-predict").href = `/pages/predict?image=${encodeURIComponent(image.image)}`;
  byId("similar").replaceChildren(el("p", { class: "muted", text: "Looking for them …" }));
  byId("similar").dataset.image = "";
  sight.unobserve(byId("similar"));
  sight.observe(byId("similar"));
}

/** Where the image stands in the result; outside of one the images of its case are walked. */
async function showPlace(signal) {
  const name = image.image;
  const own = shown.images.map((each) => each.image);
  const index = own.indexOf(name);
  const ofCase = { index, total: own.length, previous: own[index - 1] ?? null, next: own[index + 1] ?? null, isCase: true };
  byId("back").textContent = state.q || state.sort || state.filters.length ? "Back to the result" : "All images";
  setWalk(ofCase);
  let problem = "";
  const found = await place(state, name).catch((error) => {
    problem = error.message;
    return null;
  });
  if (signal.aborted || image?.image !== name) return;
  setWalk(found ?? ofCase);
  byId("place").title = problem;
}

function setWalk(next) {
  walk = next;
  byId("previous").disabled = !walk.previous;
  byId("next").disabled = !walk.next;
  const position = number(walk.index + 1);
  byId("place").replaceChildren(walk.total === null ? `Image ${position}` : `${position} of ${number(walk.total)}`, walk.isCase ? el("span", { class: "of-case", text: " in this case" }) : "");
  // Back where this image stands, with as many before it as there are.
  const many = walk.isCase || walk.index < PAGE ? 0 : Math.ceil((walk.index + 1) / PAGE) * PAGE;
  byId("back").href = resultAddress({ ...state, shown: many }, image.image);
}

function go(name) {
  if (!name) return;
  const wasFocused = document.activeElement;
  history.pushState(null, "", caseAddress(name, state));
  show().then(() => {
    // A button that is disabled at the end of the walk loses the focus: it stays in the viewer.
    if (wasFocused?.disabled) (wasFocused.id === "next" ? byId("previous") : byId("next")).focus();
  });
}

/** A sentence about what failed. What is only not ready yet is asked for again, as long as its image is shown. */
function problemOf(error, again) {
  if (error.status !== 503) return problemBox(error, again);
  const asked = image;
  const seconds = Math.max(5, Math.min(60, error.retryAfter || error.body.training?.eta_s || 15));
  const box = el("p", { class: "notice", text: `${error.message} The page asks again by itself.` });
  setTimeout(() => asked === image && box.isConnected && again(), 1000 * seconds);
  return box;
}

async function predict() {
  const target = byId("prediction");
  const [asked, { signal }] = [image, stop];
  byId("predict").disabled = true;
  if (!target.querySelector(".notice:not(.error)")) target.replaceChildren(el("p", { class: "muted", text: "Asking the models …" }));
  try {
    const params = [["caption", String(byId("with-caption").checked)]];
    const answer = await getJson(`${asked.links.self}/predict`, params, { signal });
    if (image !== asked) return;
    target.replaceChildren(...["modality", "location"].map((task) => judgedView(task, answer[task])));
  } catch (error) {
    if (image === asked && error.name !== "AbortError") target.replaceChildren(problemOf(error, predict));
  } finally {
    byId("predict").disabled = false;
  }
}

function judgedView(task, judged) {
  if (judged.prediction) return predictionView(judged.prediction, { judged, withSplit: true });
  const problem = new Problem(judged.problem.detail, judged.status, judged.problem);
  return el("section", { class: "prediction" }, el("h3", { text: spoken(task) }), problemOf(problem, predict));
}

async function showSimilar() {
  const target = byId("similar");
  const asked = image;
  if (!asked || target.dataset.image === asked.image) return;
  target.dataset.image = asked.image;
  target.setAttribute("aria-busy", "true");
  try {
    const answer = await getJson(`${asked.links.self}/similar`, [["limit", SIMILAR]]);
    if (image !== asked) return;
    const model = el("p", { class: "muted small", text: `By the embedding of ${answer.model.name}; 100% means the same.` });
    target.replaceChildren(model, el("ul", { class: "grid" }, answer.items.map(similarTile)));
  } catch (error) {
    if (image !== asked) return;
    target.dataset.image = "";
    target.replaceChildren(problemOf(error, showSimilar));
  } finally {
    if (image === asked) target.setAttribute("aria-busy", "false");
  }
}

function similarTile(item) {
  const picture = el("img", { src: `${item.links.thumbnail}?width=256`, alt: "", loading: "lazy", width: 256, height: 256 });
  const words = el("span", { class: "line" }, el("b", { text: item.modality }), ` ${item.location ?? "location unknown"}, ${Math.round(100 * item.similarity)}% alike`);
  const title = el("span", { class: "caption", text: item.diagnosis ?? item.title ?? item.caption ?? "" });
  // Outside of the result that is walked, so without its query.
  const link = el("a", { class: "tile", href: caseAddress(item.image, { q: "", sort: "", shown: 0, filters: [] }) });
  link.append(el("span", { class: "frame" }, picture), words, title);
  return el("li", {}, link);
}

// Similar images cost the service a run of the model: they are asked for when they come into sight.
const sight = new IntersectionObserver((entries) => entries.some((entry) => entry.isIntersecting) && showSimilar(), { rootMargin: "200px" });

function onKey(event) {
  if (isTyping(event)) return;
  if (viewer.onKey(event)) event.preventDefault();
  else if (event.shiftKey) return;
  else if (event.key === "ArrowLeft") go(walk.previous);
  else if (event.key === "ArrowRight") go(walk.next);
  else if (event.key === "Escape") location.assign(byId("back").href);
}

document.addEventListener("keydown", onKey);
searchOnSlash(() => resultAddress(state, ""));
byId("previous").addEventListener("click", () => go(walk.previous));
byId("next").addEventListener("click", () => go(walk.next));
byId("predict").addEventListener("click", predict);
addEventListener("popstate", () => {
  state = readState(location.search);
  show();
});
show();
