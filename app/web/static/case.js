// The case page: one image of a case at a time, with all that the dataset says; previous and next walk through
// the result that the address names. The image stands in the fragment, the result in the query.

import { getJson, Problem } from "./api.js";
import { loadCatalogue } from "./catalogue.js";
import { byId, el, isTyping, number, plural, problemBox, spoken, webLink } from "./dom.js";
import { Flags } from "./flags.js";
import { predictionView } from "./prediction.js";
import { place } from "./result.js";
import { caseAddress, readState, writeState } from "./state.js";
import { Viewer } from "./viewer.js";

const TEXTS = ["history", "exam", "findings", "differential_diagnosis", "diagnosis", "diagnosis_by", "treatment_follow_up", "discussion", "media"];
const TOPIC = ["category", "acr_code", "keywords", "disease_discussion", "reference"];
const LONG = 1500;
const SIMILAR = 8;

const viewer = new Viewer(byId("viewer"));
let state = readState(location.search);
let shown = null; // the case
let image = null; // of the case
let walk = { previous: null, next: null };
let stop = new AbortController();

const nameInAddress = () => decodeURIComponent(location.hash.slice(1));
const caseInAddress = () => decodeURIComponent(location.pathname.split("/").at(-1));
const path = (name) => `/images/${encodeURIComponent(name)}`;

/** The value of a field as it is in the dataset, found by what the catalogue says of its source. */
async function recorded(kind, address, field) {
  const [catalogue, raw] = await Promise.all([loadCatalogue(), getJson(address, [["raw", "true"]])]);
  const source = catalogue[kind].get(field)?.source ?? "";
  return source.split(".").reduce((value, key) => value?.[key], raw);
}

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
  } catch (error) {
    fail(error, signal);
  }
}

function fail(error, signal) {
  if (signal.aborted || error.name === "AbortError") return;
  const box = problemBox(error, show);
  box.append(el("a", { href: "/", class: "button", text: "Browse all images" }));
  byId("problem").replaceChildren(box);
  byId("case").hidden = shown?.u_id.toLowerCase() !== caseInAddress().toLowerCase();
}

function showCase() {
  const title = shown.title ?? shown.u_id;
  document.title = `${title} · MedPix service`;
  byId("case").hidden = false;
  byId("case").setAttribute("aria-busy", "false");
  byId("title").textContent = title;
  const patient = [shown.age !== null && `${shown.age} years`, shown.sex].filter(Boolean).join(", ");
  const parts = [`Case ${shown.u_id}`, `${shown.split} split`, plural(shown.images.length, "image"), shown.location, patient];
  const flags = new Flags(shown.quality_flags, "case", (field) => recorded("cases", shown.links.self, field));
  byId("case-line").replaceChildren(parts.filter(Boolean).join(" · "), ...flags.of("title"));
  byId("strip").replaceChildren(...(shown.images.length > 1 ? shown.images.map(stripItem) : []));
  byId("text").replaceChildren(...caseText(flags));
}

function caseText(flags) {
  const absent = [];
  const block = (heading, name, value) => {
    if (!value?.length && !flags.has(name)) absent.push(spoken(name.replace("topic.", "topic ")).toLowerCase());
    else return textBlock(heading, name, value, flags.of(name));
    return null;
  };
  const texts = TEXTS.map((name) => block(spoken(name), name, shown[name]));
  const { topic } = shown;
  const ofTopic = TOPIC.map((name) => block(spoken(name).replace("Acr", "ACR"), `topic.${name}`, topic[name]));
  const links = topic.external_links.map((link) => el("li", {}, webLink(link)));
  const about = flags.of("");
  return [
    el("div", { class: "card" }, el("h2", { text: "Case" }), texts),
    el(
      "div",
      { class: "card" },
      el("h2", {}, "Topic", topic.title && `: ${topic.title}`),
      ofTopic,
      links.length > 0 && el("div", { class: "block" }, el("h3", {}, "Links ", flags.of("topic.external_links")), el("ul", {}, links)),
    ),
    absent.length > 0 && el("p", { class: "muted small", text: `Not in the dataset: ${absent.join(", ")}.` }),
    about.length > 0 && el("p", { class: "muted small" }, "About these texts: ", about),
  ].filter(Boolean);
}

function textBlock(heading, name, value, badges) {
  const text = value && el("p", { class: "long", text: value });
  const body = value?.length > LONG && name !== "discussion"
    ? el("details", {}, el("summary", { text: `Read ${number(value.length)} characters` }), text)
    : text;
  return el("div", { class: "block", data: { field: name } }, el("h3", {}, heading, " ", badges), body);
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
  showFacts();
  showPlace(signal);
  if (isSame) return;
  byId("prediction").replaceChildren();
  byId("open-predict").href = `/pages/predict?image=${encodeURIComponent(image.image)}`;
  byId("similar").replaceChildren(el("p", { class: "muted", text: "Looking for them …" }));
  byId("similar").dataset.image = "";
  sight.unobserve(byId("similar"));
  sight.observe(byId("similar"));
}

function showFacts() {
  const flags = new Flags(image.quality_flags, "image", (field) => recorded("images", image.links.self, field));
  const caption = image.caption ? image.caption : el("span", { class: "muted", text: "No caption." });
  byId("caption").replaceChildren(caption, " ", ...flags.of("caption"));
  const known = (value) => (value === null || value === undefined ? "unknown" : String(value));
  const source = [["source_url", "image"], ["article_url", "case"]].filter(([name]) => image[name]);
  const rows = [
    ["modality_detail", "Modality", `${image.modality} (${image.modality_detail})`],
    ["plane", "Plane", known(image.plane)],
    ["location", "Location", `${known(image.location)} (${image.location_category})`],
    ["age", "Age", known(image.age)],
    ["sex", "Sex", known(image.sex)],
    ["acr_codes", "ACR codes", known(image.acr_codes)],
    image.figure_part && ["figure_part", "Figure part", image.figure_part],
    ["split", "Split", image.split],
    ["image", "File", el("a", { href: image.links.file, download: `${image.image}.png`, text: `${image.image}.png` })],
    ["size", "Size", `${image.width} × ${image.height} pixels`],
    ["source_url", "Source", source.length ? source.map(([name, text]) => [webLink(image[name], text), " "]).flat() : "unknown"],
    ["links", "API", el("a", { href: image.links.self, text: image.links.self })],
  ];
  const cells = rows.filter(Boolean).flatMap(([field, name, value]) => [el("dt", { text: name }), el("dd", { data: { field } }, value, " ", flags.of(field))]);
  byId("image-facts").replaceChildren(...cells);
}

/** Where the image stands in the result; outside of one the images of its case are walked. */
async function showPlace(signal) {
  const name = image.image;
  const own = shown.images.map((each) => each.image);
  const index = own.indexOf(name);
  const ofCase = { index, total: own.length, previous: own[index - 1] ?? null, next: own[index + 1] ?? null, isCase: true };
  const isResult = Boolean(state.q || state.sort || state.filters.length);
  byId("back").href = `/${writeState(state)}`;
  byId("back").textContent = isResult ? "Back to the result" : "All images";
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
  const total = walk.total === null ? "" : ` of ${number(walk.total)}`;
  byId("place").textContent = `${number(walk.index + 1)}${total}${walk.isCase ? " in this case" : ""}`;
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

async function predict() {
  const target = byId("prediction");
  const [asked, { signal }] = [image, stop];
  byId("predict").disabled = true;
  target.replaceChildren(el("p", { class: "muted", text: "Asking the models …" }));
  try {
    const params = [["caption", String(byId("with-caption").checked)]];
    const answer = await getJson(`${asked.links.self}/predict`, params, { signal });
    if (image !== asked) return;
    target.replaceChildren(...["modality", "location"].map((task) => judgedView(task, answer[task])));
  } catch (error) {
    if (image === asked && error.name !== "AbortError") target.replaceChildren(problemBox(error, predict));
  } finally {
    byId("predict").disabled = false;
  }
}

function judgedView(task, judged) {
  if (judged.prediction) return predictionView(judged.prediction, { judged, isKnown: true });
  return el("section", { class: "prediction" }, el("h3", { text: spoken(task) }), problemBox(new Problem(judged.problem.detail, judged.status), predict));
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
    target.replaceChildren(problemBox(error, showSimilar));
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
  else if (event.key === "/") {
    event.preventDefault();
    location.assign(`/${writeState(state)}`);
  } else if (event.shiftKey) return;
  else if (event.key === "ArrowLeft") go(walk.previous);
  else if (event.key === "ArrowRight") go(walk.next);
  else if (event.key === "Escape") location.assign(byId("back").href);
}

document.addEventListener("keydown", onKey);
byId("previous").addEventListener("click", () => go(walk.previous));
byId("next").addEventListener("click", () => go(walk.next));
byId("predict").addEventListener("click", predict);
addEventListener("popstate", () => {
  state = readState(location.search);
  show();
});
show();
