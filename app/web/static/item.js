// One file on the predict page: its image, its caption and what the models predict for it.

import { at } from "./address.js";
import { TASKS } from "./api.js";
import { el, percent, problemBox, spoken } from "./dom.js";
import { explainer } from "./explanation.js";
import { postForm } from "./post.js";
import { predictionView, verdictView } from "./prediction.js";
import { SIMILAR, similarTiles } from "./similar.js";
import { snippetsView } from "./snippets.js";

const MAX_CAPTION = 5000;

const size = (bytes) => (bytes < 1024 ** 2 ? `${Math.ceil(bytes / 1024)} KiB` : `${(bytes / 1024 ** 2).toFixed(1)} MiB`);
const best = ({ probabilities }) => probabilities[0].probability;

let count = 0;

// The service makes few previews at a time, and answers 503 to more: they are asked for one after the other.
const MAX_ASKED = 20;
const PNG = [0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a];
let previews = Promise.resolve();

/** Whether a file is a PNG of 16 bits per sample, of which a browser shows the upper 8: often black. */
async function isDeep(file) {
  const start = new Uint8Array(await file.slice(0, 25).arrayBuffer());
  return PNG.every((byte, place) => start[place] === byte) && start[24] === 16;
}

/** The image of a file that the service analyses, when it is this file's turn. */
function previewOf(file, signal) {
  const answer = previews.then(() => askForPreview(file, signal));
  previews = answer.catch(() => {});
  return answer;
}

async function askForPreview(file, signal) {
  for (let asked = 1; ; asked += 1) {
    try {
      const form = new FormData();
      form.set("image", file, file.name);
      return (await postForm(at("/preview"), form, { signal, as: "blob" })).answer;
    } catch (error) {
      if (error.status !== 503 || asked === MAX_ASKED) throw error;
      await new Promise((resolve) => setTimeout(resolve, 1000 * Math.max(1, error.retryAfter)));
    }
  }
}

/** Where the uploaded file stands in the dataset, in a sentence with a link. */
function whereabouts({ image, u_id: uId, split }) {
  const training = split === "train" ? " The model was trained on this image, so a correct answer means little." : "";
  const chosen = split === "dev" ? " The model was selected on this image, so a correct answer means little." : "";
  return el(
    "p",
    { class: split === "test" ? "notice" : "notice warn" },
    `This image is in the ${split === "train" ? "training" : split} split of the dataset: `,
    el("a", { href: at(`/pages/case/${encodeURIComponent(uId)}#${encodeURIComponent(image)}`), text: image }),
    `.${training}${chosen}`,
  );
}

/** What the caption changed, in a sentence. `alone`: the answer to the image without it. */
function effectOf(answer, alone) {
  const before = alone.probabilities.find((entry) => entry.label === answer.label)?.probability ?? 0;
  const [from, to] = [percent(before), percent(best(answer))];
  if (alone.label !== answer.label) return `The caption changed the location from ${alone.label} (${percent(best(alone))}) to ${answer.label} (${to}).`;
  if (from === to) return `The caption made no difference: ${answer.label} has ${to} with and without it.`;
  return `The caption ${best(answer) > before ? "raised" : "lowered"} ${answer.label} from ${from} to ${to}.`;
}

export class Item {
  /** `example`: the record of an image of the dataset; `onRemove` and `onChange` are told what becomes of this. */
  constructor(file, { caption = "", example = null, onRemove, onChange = () => {} }) {
    this.file = file;
    this.example = example;
    this.number = count += 1;
    this.row = { file: file.name };
    this.stop = new AbortController();
    this.waiting = new Map(); // tasks without a model, and the seconds that the service asks to wait
    this.answered = new Set(); // tasks
    this._onChange = () => onChange(this);
    this._turns = {};
    this._notes = {}; // of the answers, by task
    this._addresses = [URL.createObjectURL(file)];
    this._build(caption, `item-${this.number}`, onRemove);
  }

  get caption() {
    return this._caption.value.trim();
  }

  discard() {
    this.stop.abort();
    this._addresses.forEach((address) => URL.revokeObjectURL(address));
    this.node.remove();
  }

  /** Ask about the tasks; resolves when all have an answer or a sentence about why not. */
  async predict(tasks = TASKS) {
    this.node.setAttribute("aria-busy", "true");
    const problems = (await Promise.all(tasks.map((task) => this._predict(task)))).filter(Boolean);
    this._say(problems);
    this.node.setAttribute("aria-busy", "false");
    this._onChange();
  }

  _build(caption, id, onRemove) {
    this._picture = el("img", { src: this._addresses[0], alt: `Preview of ${this.file.name}` });
    this._overlay = el("div", { class: "overlay" }, this._picture);
    this._picture.addEventListener("error", () => this._showAnalysed(), { once: true });
    isDeep(this.file).then((deep) => deep && this._showAnalysed(), () => {});
    this._caption = el("textarea", { id: `${id}-caption`, rows: 2, maxlength: MAX_CAPTION, placeholder: "What does the image show?" });
    this._caption.value = caption;
    const slots = (name) => Object.fromEntries(TASKS.map((task) => [task, el("div", { class: name, data: { task } })]));
    [this._verdicts, this._slots] = [slots("verdict-slot"), slots("slot")];
    [this._known, this._problem, this._effect] = [el("div"), el("div", { role: "alert" }), el("p", { class: "effect small", "aria-live": "polite" })];
    const remove = el("button", { type: "button", class: "quiet", text: "Remove", "aria-label": `Remove ${this.file.name}`, on: { click: () => onRemove(this) } });
    const ask = el(
      "form",
      { class: "ask" },
      el("label", { for: `${id}-caption`, text: "Caption" }),
      el("div", { class: "ask-row" }, this._caption, el("button", { text: "Predict again" })),
      this._effect,
    );
    ask.addEventListener("submit", (event) => {
      event.preventDefault();
      this.predict();
    });
    this._caption.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        ask.requestSubmit();
      }
    });
    const head = el("div", { class: "item-head" }, el("h2", { id: `${id}-name`, class: "grow name", text: this.file.name }), el("span", { class: "muted small", text: size(this.file.size) }), remove);
    const verdicts = el("div", { class: "verdicts", "aria-live": "polite" }, Object.values(this._verdicts));
    const answers = el("div", { class: "answers" }, Object.values(this._slots));
    const body = el("div", { class: "item-body" }, this._overlay, el("div", { class: "summary" }, this._problem, verdicts, ask, this._known, answers));
    this.node = el("article", { class: "card item", id, tabindex: -1, "aria-labelledby": `${id}-name` }, head, body, this._similar());
  }

  /** The image of a file that the browser cannot show as it is analysed, such as DICOM: the service's own. */
  async _showAnalysed() {
    if (this._isReplaced) return;
    this._isReplaced = true;
    this._picture.remove();
    const words = el("p", { text: "Loading the image …" });
    this._overlay.append(words);
    try {
      const answer = await previewOf(this.file, this.stop.signal);
      const address = URL.createObjectURL(answer);
      this._addresses.push(address);
      this._shown = address;
      this._picture = el("img", { src: address, alt: `The image of ${this.file.name} that was analysed` });
      this._overlay.replaceChildren(this._picture);
    } catch (error) {
      if (error.name !== "AbortError") words.textContent = error.status === 503 ? error.message : "The browser cannot show this file.";
    }
  }

  _similar() {
    const target = el("div", { "aria-live": "polite" });
    const button = el("button", { type: "button", text: "Find visually similar cases" });
    button.addEventListener("click", async () => {
      button.disabled = true;
      target.replaceChildren(el("p", { class: "muted", text: "Searching …" }));
      try {
        const form = new FormData();
        form.set("image", this.file, this.file.name);
        const { answer } = await postForm(at(`/search/similar?limit=${SIMILAR}`), form, { signal: this.stop.signal });
        target.replaceChildren(...similarTiles(answer));
      } catch (error) {
        if (error.name !== "AbortError") target.replaceChildren(problemBox(error, () => button.click()));
      } finally {
        button.disabled = false;
      }
    });
    return el("div", { class: "similar" }, button, target);
  }

  _form(task, caption = this.caption) {
    const form = new FormData();
    form.set("image", this.file, this.file.name);
    if (task === "location" && caption) form.set("caption", caption);
    return form;
  }

  /** Returns what is wrong, if there is no answer. */
  async _predict(task) {
    const slot = this._slots[task];
    const { signal } = this.stop;
    const caption = this.caption;
    const turn = (this._turns[task] = (this._turns[task] ?? 0) + 1);
    // With the answer goes its explanation: a map says nothing about the next one.
    slot.replaceChildren();
    this._verdicts[task].replaceChildren(el("h3", { text: spoken(task) }), el("p", { class: "muted", text: `Predicting the ${task} …` }));
    // Nor does a sentence on the former answer.
    if (task === "location") this._effect.textContent = "";
    this.waiting.delete(task);
    this.answered.delete(task);
    const asked = this._form(task);
    try {
      const { answer, timing } = await postForm(at(`/predict/${task}`), asked, { signal });
      if (turn !== this._turns[task]) return null; // asked again meanwhile
      this._show(task, answer, { timing, asked, caption });
      if (task === "location") this._compare(answer, caption, turn);
      return null;
    } catch (error) {
      if (error.name === "AbortError" || turn !== this._turns[task]) return null;
      return { task, error };
    }
  }

  _show(task, answer, { timing, asked, caption }) {
    const { signal } = this.stop;
    const labelled = this._labelled(task, answer);
    const explained = { formOf: () => asked, addressOf: () => this._shown ?? this._addresses[0], signal, keep: (address) => this._addresses.push(address) };
    const view = predictionView(answer, { timing, labelled, isBrief: true });
    view.append(explainer(task, answer, explained), snippetsView(task, this.file.name, caption));
    this._slots[task].replaceChildren(view);
    this._verdicts[task].replaceChildren(el("h3", { text: spoken(task) }), ...verdictView(answer, labelled));
    this.answered.add(task);
    this._known.replaceChildren(answer.in_dataset ? whereabouts(answer.in_dataset) : "");
    const found = answer.in_dataset;
    this._notes[task] = answer.notes;
    Object.assign(this.row, {
      [task]: answer.label,
      [`${task}_probability`]: best(answer),
      [`${task}_decision`]: answer.decision,
      notes: [...new Set(Object.values(this._notes).flat())].join(" "),
      problem: null,
      dataset_image: found?.image,
      dataset_split: found?.split,
      note: found ? `in the ${found.split === "train" ? "training" : found.split} split` : null,
    });
    if (task === "location") this.row.inputs = answer.inputs_used.join(" and ");
  }

  /** What the caption did: the same question without it. */
  async _compare(answer, caption, turn) {
    if (!caption) return;
    if (!answer.inputs_used.includes("caption")) {
      this._effect.textContent = "The caption was not used.";
      return;
    }
    try {
      const { answer: alone } = await postForm(at("/predict/location"), this._form("location", ""), { signal: this.stop.signal });
      if (turn === this._turns.location) this._effect.textContent = effectOf(answer, alone);
    } catch {
      // The answer stands without this sentence.
    }
  }

  /** Why there are no answers: once, where both tasks have the same reason. */
  _say(problems) {
    for (const { task, error } of problems) {
      for (const name of [task, `${task}_probability`, `${task}_decision`]) this.row[name] = null;
      this.row.problem = error.message;
    }
    const [first, other] = problems;
    const isOne = other && first.error.message === other.error.message && first.error.status !== 503;
    this._problem.replaceChildren(isOne ? problemBox(first.error, () => this.predict()) : "");
    for (const { task, error } of problems) {
      this._verdicts[task].replaceChildren(...(isOne ? [] : [el("h3", { text: spoken(task) }), this._problemOf(task, error)]));
    }
  }

  /** Why there is no answer; the page asks again by itself for what is only not ready. */
  _problemOf(task, error) {
    if (error.status !== 503) return problemBox(error, () => this.predict([task]));
    this.waiting.set(task, error.retryAfter);
    // How far a training is stands at the top, where it goes on.
    const reason = error.body.training ? `The model for ${task} is not ready yet.` : error.message;
    return el("p", { class: "notice", text: `${reason} This page retries automatically.` });
  }

  _labelled(task, { label, probabilities }) {
    if (!this.example) return null;
    const truth = this.example[task];
    const isClass = probabilities.some((entry) => entry.label === truth);
    return { truth, correct: isClass ? label === truth : null };
  }
}
