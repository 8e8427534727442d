// The predict page: images come by drop, paste, file dialogue or as an example of the dataset, and are predicted at once.

import { at } from "./address.js";
import { getJson, TASKS } from "./api.js";
import { byId, el, number, onPlainClick, plural, problemBox } from "./dom.js";
import { Item } from "./item.js";
import { Overview } from "./overview.js";
import { getBlob } from "./post.js";
import { watchTraining } from "./training.js";

const AT_ONCE = 4;
const MOST = 200;
const EXAMPLES = 6;
// Seconds until the page asks again by itself, where the service does not say when to come.
const [LEAST_S, MOST_S] = [5, 60];

const items = new Set();
const overview = new Overview(byId("overview"), { onChoose: (item) => choose(item, { isFocused: true }) });
let chosen = null; // of several, the one that is shown
const queue = []; // of items with the tasks to ask about; an item once
const running = []; // items; one twice while it is asked about its tasks apart
let isWatching = false;
let rounds = 0; // of asking again in vain
let exampleTurn = 0;
let isLoading = false; // the image that the address named when the page was opened

function enqueue(item, tasks = TASKS) {
  const queued = queue.find(([other]) => other === item);
  if (queued) queued[1] = [...new Set([...queued[1], ...tasks])];
  else queue.push([item, tasks]);
  work();
}

async function work() {
  if (running.length >= AT_ONCE || !queue.length) return say();
  const [item, tasks] = queue.shift();
  running.push(item);
  say();
  await item.predict(tasks);
  running.splice(running.indexOf(item), 1);
  if (item.waiting.size) watch();
  else rounds = 0;
  return work();
}

/** What became of the images: "3 images analysed, 2 failed." */
function outcome() {
  const all = [...items];
  const waiting = all.filter((item) => item.waiting.size).length;
  const analysed = all.filter((item) => item.answered.size === TASKS.length).length;
  const parts = [[analysed, "analysed"], [all.length - analysed - waiting, "failed"], [waiting, "waiting for a model"]];
  const words = parts.filter(([count]) => count).map(([count, what], index) => `${index ? number(count) : plural(count, "image")} ${what}`);
  return `${words.join(", ")}.`;
}

function say() {
  const open = [...items].filter((item) => running.includes(item) || queue.some(([queued]) => queued === item)).length;
  const text = open ? `Analysing ${plural(items.size, "image")}, ${number(items.size - open)} done …` : outcome();
  byId("status").textContent = items.size ? text : "";
  byId("clear").hidden = items.size < 2;
  overview.show([...items], chosen);
}

/** Show one item of several. */
function choose(item, { isFocused = false } = {}) {
  chosen = item;
  for (const each of items) each.node.hidden = items.size > 1 && each !== item;
  // With a result at hand the ways to another one are brief.
  document.body.classList.toggle("has-items", items.size > 0 || isLoading);
  overview.show([...items], chosen);
  if (!isFocused) return;
  item.node.focus({ preventScroll: true });
  item.node.scrollIntoView({ block: "nearest" });
}

function add(files, options = {}) {
  const list = [...files];
  const fresh = list.slice(0, Math.max(0, MOST - items.size));
  const problem = byId("problem");
  problem.replaceChildren();
  if (fresh.length < list.length) {
    problem.append(el("div", { class: "notice warn" }, el("p", { text: `This page takes up to ${MOST} images; ${number(list.length - fresh.length)} were left out. Use the API for more.` })));
  }
  byId("below").hidden = false;
  const made = fresh.map((file) => new Item(file, { ...options, onRemove: remove, onChange: () => overview.show([...items], chosen) }));
  for (const item of made) items.add(item);
  byId("items").append(...made.map((item) => item.node));
  if (made.length) {
    byId("examples-box").open = false;
    choose(made[0]);
    scrollTo(0, 0);
  }
  // In their order, so that the first answers stand at the top.
  for (const item of made) enqueue(item);
  return made;
}

function remove(item) {
  items.delete(item);
  const waiting = queue.findIndex(([queued]) => queued === item);
  if (waiting >= 0) queue.splice(waiting, 1);
  item.discard();
  if (chosen === item) chosen = items.values().next().value ?? null;
  choose(chosen);
  if (item.example && exampleInAddress()) history.replaceState(null, "", location.pathname);
  say();
  byId("files").focus({ preventScroll: true });
}

const exampleInAddress = () => new URLSearchParams(location.search).get("image");

/** Show the image of the dataset that the address names, in the place of an earlier one. */
async function showExample() {
  const turn = (exampleTurn += 1);
  isLoading &&= turn === 1;
  for (const item of items) {
    if (!item.example) continue;
    items.delete(item);
    item.discard();
  }
  choose(items.values().next().value ?? null);
  say();
  const name = exampleInAddress();
  if (!name) return;
  const problem = byId("problem");
  problem.replaceChildren();
  byId("status").textContent = "Loading the image …";
  try {
    const image = await getJson(at(`/images/${encodeURIComponent(name)}`));
    const blob = await getBlob(image.links.file);
    if (turn !== exampleTurn) return; // asked for again or for another one meanwhile
    isLoading = false;
    const file = new File([blob], `${image.image}.png`, { type: "image/png" });
    add([file], { caption: image.caption ?? "", example: image });
  } catch (error) {
    if (turn !== exampleTurn) return;
    isLoading = false;
    choose(chosen);
    say();
    problem.replaceChildren(problemBox(error, showExample));
  }
}

/** One image per location, both modalities in turn. */
function chooseExamples(images) {
  const chosen = [];
  for (let index = 0; chosen.length < EXAMPLES && index < images.length; index += 1) {
    const wanted = chosen.length % 2 ? "MR" : "CT";
    const fits = (image) => !chosen.includes(image) && !chosen.some((other) => other.location === image.location);
    const next = images.find((image) => fits(image) && image.modality === wanted) ?? images.find(fits);
    if (!next) break;
    chosen.push(next);
  }
  return chosen;
}

async function showExamples() {
  const target = byId("examples");
  try {
    const params = { split: "test", caption__isnull: "false", fields: "image,modality,location,links", limit: "100" };
    const page = await getJson(at("/images"), params);
    target.replaceChildren(...chooseExamples(page.items).map(exampleItem));
    target.closest("details").hidden = page.items.length === 0;
  } catch (error) {
    target.replaceChildren(el("li", { class: "grow" }, problemBox(error, showExamples)));
  } finally {
    target.setAttribute("aria-busy", "false");
  }
}

function exampleItem(image) {
  const words = `${image.modality}, ${image.location}`;
  const picture = el("img", { src: `${image.links.thumbnail}?width=128`, alt: "", width: 96, height: 96 });
  const link = el("a", { href: `?image=${encodeURIComponent(image.image)}`, class: "tile" }, el("span", { class: "frame" }, picture), el("span", { class: "line", text: words }));
  const open = () => {
    // A double click is one step of the history.
    if (exampleInAddress() !== image.image) history.pushState(null, "", link.getAttribute("href"));
    showExample();
  };
  return el("li", {}, onPlainClick(link, open));
}

/** Watch the training until every task is served, and ask again then what could not be answered. */
async function watch() {
  if (isWatching) return;
  isWatching = true;
  const askAgain = (isMeant) => {
    for (const item of items) {
      const tasks = [...item.waiting.keys()].filter(isMeant);
      if (tasks.length) enqueue(item, tasks);
    }
  };
  await watchTraining(byId("training"), {
    onKnown: () => (byId("below").hidden = false),
    onChange: (changed) => askAgain((task) => task === changed),
  });
  // Served already, so the service was overloaded, or something before it answers for it.
  const asked = [...items].flatMap((item) => [...item.waiting.values()]);
  if (asked.length) {
    const seconds = Math.max(...asked, Math.min(MOST_S, LEAST_S * 2 ** rounds));
    rounds += 1;
    await new Promise((resolve) => setTimeout(resolve, 1000 * seconds));
  } else {
    rounds = 0;
  }
  isWatching = false;
  askAgain(() => true);
}

function setUpFiles() {
  const input = byId("files");
  input.addEventListener("change", () => {
    add(input.files);
    input.value = ""; // the same file may be chosen again
  });
  const hasFiles = (event) => event.dataTransfer?.types.includes("Files");
  const light = (isOn) => byId("drop").classList.toggle("over", isOn);
  document.addEventListener("dragover", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    light(true);
  });
  document.addEventListener("dragleave", (event) => event.relatedTarget === null && light(false));
  document.addEventListener("drop", (event) => {
    light(false);
    if (!hasFiles(event)) return;
    event.preventDefault();
    add(event.dataTransfer.files);
  });
  document.addEventListener("paste", (event) => {
    if (!event.clipboardData?.files.length) return;
    event.preventDefault();
    add(event.clipboardData.files);
  });
}

byId("clear").addEventListener("click", () => [...items].forEach(remove));
addEventListener("popstate", showExample);
setUpFiles();
watch();
showExamples();
isLoading = Boolean(exampleInAddress());
showExample();
