// One image on the predict page: its picture, its caption and what the models say of it.

import { el, problemBox, spoken } from "./dom.js";
import { explainer } from "./explanation.js";
import { postForm } from "./post.js";
import { predictionView } from "./prediction.js";
import { snippetsView } from "./snippets.js";

export const TASKS = ["modality", "location"];
const MAX_CAPTION = 5000;

const size = (bytes) => (bytes < 1024 ** 2 ? `${Math.ceil(bytes / 1024)} KiB` : `${(bytes / 1024 ** 2).toFixed(1)} MiB`);

let count = 0;

/** Where the uploaded file stands in the dataset, in a sentence with a link. */
function whereabouts({ image, u_id: uId, split }) {
  const training = split === "train" ? " The model has seen it with its answer, so this proves nothing." : "";
  const chosen = split === "dev" ? " The model was chosen with it, so this proves little." : "";
  return el(
    "p",
    { class: split === "test" ? "notice" : "notice warn" },
    `This image is in the ${split === "train" ? "training" : split} split of the dataset: `,
    el("a", { href: `/pages/case/${encodeURIComponent(uId)}#${encodeURIComponent(image)}`, text: image }),
    `.${training}${chosen}`,
  );
}

export class Item {
  /** `example`: the record of an image of the dataset; `onRemove` is told when the user removes this. */
  constructor(file, { caption = "", example = null, onRemove }) {
    this.file = file;
    this.example = example;
    this.stop = new AbortController();
    this.waiting = new Map(); // tasks without a model, and the seconds that the service asks to wait
    this.answered = new Set(); // tasks
    this._turns = {};
    this._addresses = [URL.createObjectURL(file)];
    this._build(caption, `item-${(count += 1)}`, onRemove);
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
    await Promise.all(tasks.map((task) => this._predict(task)));
    this.node.setAttribute("aria-busy", "false");
  }

  _build(caption, id, onRemove) {
    const picture = el("img", { src: this._addresses[0], alt: `Preview of ${this.file.name}` });
    picture.addEventListener("error", () => picture.replaceWith(el("p", { class: "muted", text: "The browser cannot show this file." })));
    this._caption = el("textarea", { id: `${id}-caption`, rows: 4, maxlength: MAX_CAPTION, placeholder: "What does the image show?" });
    this._caption.value = caption;
    this._slots = Object.fromEntries(TASKS.map((task) => [task, el("div", { class: "slot", data: { task } })]));
    this._known = el("div", { "aria-live": "polite" });
    const remove = el("button", { type: "button", text: "Remove", "aria-label": `Remove ${this.file.name}`, on: { click: () => onRemove(this) } });
    const ask = el("form", { class: "ask" }, el("label", { for: `${id}-caption`, text: "Caption" }), this._caption, el("button", { text: "Predict again" }));
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
    const head = el("div", { class: "row" }, el("h2", { id: `${id}-name`, class: "grow name", text: this.file.name }), el("span", { class: "muted small", text: size(this.file.size) }), remove);
    const figure = el("div", {}, el("div", { class: "overlay" }, picture), ask);
    const answers = el("div", { class: "answers", "aria-live": "polite" }, Object.values(this._slots));
    this.node = el("article", { class: "card item", "aria-labelledby": `${id}-name` }, head, this._known, el("div", { class: "item-body" }, figure, answers));
  }

  _form(task) {
    const form = new FormData();
    form.set("image", this.file, this.file.name);
    if (task === "location" && this.caption) form.set("caption", this.caption);
    return form;
  }

  async _predict(task) {
    const slot = this._slots[task];
    const { signal } = this.stop;
    const caption = this.caption;
    const turn = (this._turns[task] = (this._turns[task] ?? 0) + 1);
    // With the answer goes its explanation: a map says nothing about the next one.
    slot.replaceChildren(el("p", { class: "muted", text: `Asking for the ${task} …` }));
    this.waiting.delete(task);
    this.answered.delete(task);
    const asked = this._form(task);
    try {
      const { answer, timing } = await postForm(`/predict/${task}`, asked, { signal });
      if (turn !== this._turns[task]) return; // asked again meanwhile
      const view = predictionView(answer, { timing, judged: this._judge(task, answer) });
      const explained = { formOf: () => asked, address: this._addresses[0], signal, keep: (address) => this._addresses.push(address) };
      view.append(explainer(task, answer, explained), snippetsView(task, this.file.name, caption));
      slot.replaceChildren(view);
      this.answered.add(task);
      this._known.replaceChildren(answer.in_dataset ? whereabouts(answer.in_dataset) : "");
    } catch (error) {
      if (error.name === "AbortError" || turn !== this._turns[task]) return;
      slot.replaceChildren(el("h3", { text: spoken(task) }), this._problem(task, error));
    }
  }

  /** Why there is no answer; the page asks again by itself for what is only not ready. */
  _problem(task, error) {
    if (error.status !== 503) return problemBox(error, () => this.predict([task]));
    this.waiting.set(task, error.retryAfter);
    // How far a training is stands at the top, where it goes on.
    const reason = error.body.training ? `The model for ${task} is not ready yet.` : error.message;
    return el("p", { class: "notice", text: `${reason} The page asks again by itself.` });
  }

  _judge(task, { label, probabilities }) {
    if (!this.example) return null;
    const truth = this.example[task];
    const isClass = probabilities.some((entry) => entry.label === truth);
    return { truth, correct: isClass ? label === truth : null };
  }
}
