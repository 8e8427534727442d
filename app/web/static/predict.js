// Uploads: choose, drop or paste images, ask for both tasks, and look at what spoke for the answers.

import { getBlob, getJson, postForm } from "./api.js";
import { byId, el, problemBox, spoken } from "./dom.js";
import { predictionView, ranking } from "./prediction.js";
import { snippets } from "./snippets.js";
import { watchTraining } from "./training.js";

const TASKS = ["modality", "location"];
let files = [];

function choose(list) {
  files = [...list];
  byId("submit").disabled = !files.length;
  byId("submit").textContent = files.length > 1 ? `Predict ${files.length} images` : "Predict";
  byId("problem").replaceChildren();
}

function formOf(file, caption, task) {
  const form = new FormData();
  form.append("image", file, file.name);
  if (task === "location" && caption) form.append("caption", caption);
  return form;
}

async function predictAll(event) {
  event?.preventDefault();
  if (!files.length) return;
  byId("submit").disabled = true;
  const caption = byId("caption").value.trim();
  const cards = files.map((file) => card(file, caption));
  byId("results").replaceChildren(...cards.map(({ view }) => view));
  cards[0].view.scrollIntoView({ block: "nearest" });
  // One after the other: the first answers come at once, and the service stays free for others.
  for (const { ask } of cards) await ask();
  byId("submit").disabled = false;
}

function card(file, caption) {
  const answers = el("div", { class: "answers" }, el("p", { class: "muted", text: "Waiting …" }));
  const picture = el("div", { class: "explained" });
  const view = el("article", { class: "card result" }, el("h2", { class: "file-name", text: file.name }), el("div", { class: "split" }, picture, answers));
  const overlay = preview(file, picture);
  const ask = async () => {
    answers.replaceChildren();
    for (const task of TASKS) answers.append(await answerOf(file, caption, task, overlay));
  };
  return { view, ask };
}

function preview(file, target) {
  const address = URL.createObjectURL(file);
  const image = el("img", { src: address, alt: `Your image ${file.name}` });
  const map = el("canvas", { class: "map", width: 32, height: 32, hidden: true, "aria-hidden": "true" });
  const frame = el("div", { class: "layers" }, image, map);
  image.addEventListener("load", () => URL.revokeObjectURL(address), { once: true });
  image.addEventListener("error", () => {
    URL.revokeObjectURL(address);
    frame.replaceChildren(el("p", { class: "muted", text: "The browser cannot show this file; the service may still read it." }));
  });
  target.append(frame);
  return { map, target };
}

async function answerOf(file, caption, task, overlay) {
  const box = el("section", { "aria-label": spoken(task) });
  try {
    const { answer, timing } = await postForm(`/predict/${task}`, formOf(file, caption, task));
    box.append(predictionView(answer, { timing }), why(file, caption, task, overlay), snippets(task, file.name, caption));
  } catch (error) {
    box.append(el("h3", { text: spoken(task) }), problemBox(error, async () => {
      box.replaceWith(await answerOf(file, caption, task, overlay));
    }));
  }
  return box;
}

function why(file, caption, task, overlay) {
  const target = el("div", {});
  const button = el("button", { type: "button", text: "What spoke for this?" });
  button.addEventListener("click", async () => {
    button.disabled = true;
    try {
      const { answer } = await postForm(`/explain/${task}?format=json`, formOf(file, caption, task));
      showMap(answer.explanation, overlay);
      target.replaceChildren(...alone(answer, caption, task));
    } catch (error) {
      target.replaceChildren(problemBox(error));
    }
    button.disabled = false;
  });
  return el("div", { class: "why" }, button, target);
}

function alone({ explanation, by_input: inputs }, caption, task) {
  const words = explanation.method === "grad-cam" ? "Grad-CAM" : "hiding parts of the image";
  const views = [el("p", { class: "small", text: `The map on the image shows what spoke for ${explanation.label} (${words}); red counts most.` })];
  if (task !== "location") return views;
  for (const [name, title] of [["image", "The image alone"], ["caption", "The caption alone"]]) {
    const given = inputs[name];
    const none = name === "caption" && !caption ? "no caption was given" : "cannot answer alone";
    views.push(el("h4", { text: given ? `${title}: ${given.label}` : `${title}: ${none}` }));
    if (given) views.push(ranking(given.probabilities));
  }
  return views;
}

function showMap({ label, map }, { map: canvas, target }) {
  const context = canvas.getContext("2d");
  [canvas.width, canvas.height] = [map[0].length, map.length];
  const pixels = context.createImageData(canvas.width, canvas.height);
  map.flat().forEach((value, index) => {
    // From nothing over yellow to red, as strong as the relevance.
    pixels.data.set([255, Math.round(255 * (1 - value)), 0, Math.round(230 * value)], 4 * index);
  });
  context.putImageData(pixels, 0, 0);
  canvas.hidden = false;
  target.querySelector(".strength")?.remove();
  const slider = el("input", { type: "range", min: 0, max: 100, value: 60 });
  const draw = () => {
    canvas.style.opacity = String(slider.value / 100);
  };
  slider.addEventListener("input", draw);
  draw();
  target.append(el("label", { class: "strength small" }, `Strength of the map for ${label} `, slider));
}

async function example() {
  const button = byId("example");
  button.disabled = true;
  try {
    const params = [["split", "test"], ["caption__isnull", "false"], ["limit", 100], ["fields", "image,caption,links"]];
    const { items } = await getJson("/images", params);
    if (!items.length) throw new Error("The dataset has no test image with a caption.");
    const item = items[Math.floor(Math.random() * items.length)];
    const blob = await getBlob(item.links.file);
    byId("caption").value = item.caption;
    byId("files").value = "";
    choose([new File([blob], `${item.image}.png`, { type: blob.type })]);
    await predictAll();
  } catch (error) {
    byId("problem").replaceChildren(problemBox(error, example));
  }
  button.disabled = false;
}

function start() {
  const drop = byId("drop");
  byId("files").addEventListener("change", () => choose(byId("files").files));
  byId("form").addEventListener("submit", predictAll);
  byId("example").addEventListener("click", example);
  drop.addEventListener("dragover", (event) => {
    event.preventDefault();
    drop.classList.add("over");
  });
  drop.addEventListener("dragleave", () => drop.classList.remove("over"));
  drop.addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    if (event.dataTransfer.files.length) choose(event.dataTransfer.files);
  });
  document.addEventListener("paste", (event) => {
    if (event.clipboardData.files.length) choose(event.clipboardData.files);
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && document.activeElement !== document.body) document.activeElement.blur();
  });
  watchTraining(byId("training"));
}

start();
