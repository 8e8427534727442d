// One case: its images, large and one at a time, its texts, similar images, and what the models say.

import { getJson } from "./api.js";
import { byId, el, isTyping, number, problemBox, spoken, webLink } from "./dom.js";
import { flagList } from "./flags.js";
import { predictionView } from "./prediction.js";
import { place } from "./result.js";
import { caseAddress, readState, writeState } from "./state.js";
import { Viewer } from "./viewer.js";

const uId = byId("title").dataset.case;
const state = readState(location.search);
const viewer = new Viewer(byId("viewer"));
const TEXTS = ["history", "exam", "findings", "diagnosis", "differential_diagnosis", "diagnosis_by", "treatment_follow_up", "discussion"];
let found = null;
let image = null;

async function start() {
  byId("back").href = `/${writeState(state)}`;
  if (!writeState(state)) byId("back").textContent = "← All images";
  try {
    found = await getJson(`/cases/${encodeURIComponent(uId)}`);
  } catch (error) {
    byId("viewer").hidden = true;
    byId("about").setAttribute("aria-busy", "false");
    byId("problem").replaceChildren(problemBox(error, error.status === 404 ? null : () => location.reload()));
    return;
  }
  byId("title").textContent = found.title ?? `Case ${uId}`;
  document.title = `${found.title ?? uId} · MedPix service`;
  describe();
  byId("strip").replaceChildren(...found.images.map(thumbnail));
  choose();
}

function chosen() {
  const wanted = decodeURIComponent(location.hash.slice(1));
  return found.images.find((item) => item.image === wanted) ?? found.images[0];
}

function choose() {
  if (!found?.images.length) return;
  image = chosen();
  viewer.show(image);
  byId("file").href = image.links.file;
  byId("caption").replaceChildren(...captionOf(image));
  for (const link of byId("strip").querySelectorAll("a")) {
    if (link.hash === `#${encodeURIComponent(image.image)}`) link.setAttribute("aria-current", "true");
    else link.removeAttribute("aria-current");
  }
  byId("answers").replaceChildren();
  byId("ask").disabled = false;
  showPlace(image);
  showSimilar(image);
}

function captionOf(item) {
  const facts = [item.modality_detail, item.plane ?? "plane unknown", item.location ?? "location unknown", item.figure_part];
  return [
    el("span", { class: "muted small", text: `${item.image} · ${facts.filter(Boolean).join(" · ")}` }),
    el("br"),
    item.caption ?? el("span", { class: "muted", text: "No caption." }),
    flagList(item.quality_flags) ?? "",
  ];
}

function thumbnail(item) {
  const picture = el("img", { src: `${item.links.thumbnail}?width=128`, width: 96, height: 96, alt: item.caption ?? "no caption", loading: "lazy" });
  const link = el("a", { href: `${location.search}#${encodeURIComponent(item.image)}` }, picture);
  return el("li", {}, link);
}

function describe() {
  const facts = [
    ["Case", uId],
    ["Split", found.subsplit ? `${found.split} (${found.subsplit})` : found.split],
    ["Age", found.age === null ? "unknown" : String(found.age)],
    ["Sex", found.sex ?? "unknown"],
    ["Location", [found.location ?? "unknown", found.location_category].filter(Boolean).join(", ")],
    ["Images", `${number(found.image_count)} (${found.modalities.join(", ")})`],
  ];
  const topic = found.topic;
  byId("about").replaceChildren(
    el("dl", { class: "facts card" }, facts.flatMap(([name, value]) => [el("dt", { text: name }), el("dd", { text: value })])),
    flagList(found.quality_flags) ?? "",
    ...TEXTS.filter((name) => found[name]).flatMap((name) => [el("h2", { text: spoken(name) }), el("p", { class: "long", text: found[name] })]),
    el("h2", { text: `Topic: ${topic.title ?? "untitled"}` }),
    topic.category ? el("p", { class: "muted", text: topic.category }) : "",
    topic.disease_discussion ? el("p", { class: "long", text: topic.disease_discussion }) : "",
    topic.keywords ? el("p", { class: "small" }, el("b", { text: "Keywords: " }), topic.keywords) : "",
    topic.reference ? el("p", { class: "small long" }, el("b", { text: "Reference: " }), topic.reference) : "",
    topic.external_links.length ? el("ul", { class: "small" }, topic.external_links.map((address) => el("li", {}, webLink(address)))) : "",
  );
  byId("about").setAttribute("aria-busy", "false");
}

async function showPlace(item) {
  const [previous, next] = [byId("previous"), byId("next")];
  previous.hidden = next.hidden = true;
  byId("place").textContent = "";
  let where;
  try {
    where = await place(state, item.image);
  } catch {
    return; // the case is shown; only the way to its neighbours is missing
  }
  if (!where || item !== image) return;
  byId("place").textContent = `Image ${number(where.index + 1)}${where.total ? ` of ${number(where.total)}` : ""} of this result`;
  for (const [link, target] of [[previous, where.previous], [next, where.next]]) {
    link.hidden = !target;
    if (target) link.href = caseAddress(target, state);
  }
}

async function showSimilar(item) {
  const target = byId("similar");
  target.replaceChildren(el("p", { class: "muted", text: "Looking for similar images …" }));
  try {
    const answer = await getJson(`/images/${encodeURIComponent(item.image)}/similar`, [["limit", 8]]);
    if (item !== image) return;
    target.replaceChildren(el("ul", { class: "grid" }, answer.items.map(similarTile)));
  } catch (error) {
    if (item === image) target.replaceChildren(problemBox(error, error.status === 503 ? null : () => showSimilar(item)));
  }
}

function similarTile(item) {
  const frame = el("span", { class: "frame" }, el("img", { src: `${item.links.thumbnail}?width=256`, alt: "", loading: "lazy" }));
  const line = el("span", { class: "line" }, el("b", { text: item.modality }), ` ${item.location ?? "location unknown"}`);
  const words = el("span", { class: "caption", text: item.diagnosis ?? item.title ?? item.caption ?? item.u_id });
  return el("li", {}, el("a", { class: "tile", href: caseAddress(item.image, { q: "", sort: "", shown: 0, filters: [] }) }, frame, line, words));
}

async function ask() {
  const asked = image;
  byId("ask").disabled = true;
  byId("answers").replaceChildren(el("p", { class: "muted", text: "Asking the models …" }));
  try {
    const answer = await getJson(`/images/${encodeURIComponent(asked.image)}/predict`);
    if (asked !== image) return;
    const views = ["modality", "location"].map((task) => {
      const { prediction, problem } = answer[task];
      if (prediction) return predictionView(prediction, { truth: answer.truth });
      return el("div", {}, el("h3", { text: spoken(task) }), el("p", { class: "notice error", text: problem.detail }));
    });
    byId("answers").replaceChildren(...views);
  } catch (error) {
    byId("answers").replaceChildren(problemBox(error, ask));
    byId("ask").disabled = false;
  }
}

function onKey(event) {
  if (isTyping(event)) return;
  const link = { ArrowLeft: "previous", ArrowRight: "next" }[event.key];
  if (link && !byId(link).hidden) byId(link).click();
  else if (event.key === "f") viewer.full();
  else if (event.key === "+") viewer.zoom(1.4);
  else if (event.key === "-") viewer.zoom(1 / 1.4);
  else if (event.key === "Escape" && !document.fullscreenElement) location.href = byId("back").href;
}

byId("ask").addEventListener("click", ask);
addEventListener("hashchange", choose);
document.addEventListener("keydown", onKey);
start();
