// One image on the predict page: its picture, its caption, what the models say of it and where they looked.

import { postForm } from "./api.js";
import { el, problemBox, spoken } from "./dom.js";
import { inputsView, predictionView } from "./prediction.js";
import { snippetsView } from "./snippets.js";

export const TASKS = ["modality", "location"];
const MAX_CAPTION = 5000;

const size = (bytes) => (bytes < 1024 ** 2 ? `${Math.ceil(bytes / 1024)} KiB` : `${(bytes / 1024 ** 2).toFixed(1)} MiB`);

let count = 0;

export class Item {
  /** `example`: the record of an image of the dataset; `onRemove` is told when the user removes this. */
  constructor(file, { caption = "", example = null, onRemove }) {
    this.file = file;
    this.example = example;
    this.stop = new AbortController();
    this.waiting = new Map(); // tasks without a model, and the seconds that the service asks to wait
    this._turns = {};
    this._address = URL.createObjectURL(file);
    this._overlay = null;
    this._build(caption, `item-${(count += 1)}`, onRemove);
  }

  get caption() {
    return this._caption.value.trim();
  }

  discard() {
    this.stop.abort();
    for (const address of [this._address, this._overlay]) if (address) URL.revokeObjectURL(address);
    this.node.remove();
  }

  /** Ask about the tasks; resolves when all have an answer or a sentence about why not. */
  async predict(tasks = TASKS) {
    this.node.setAttribute("aria-busy", "true");
    await Promise.all(tasks.map((task) => this._predict(task)));
    this.node.setAttribute("aria-busy", "false");
  }

  _build(caption, id, onRemove) {
    this._picture = el("img", { src: this._address, alt: `Preview of ${this.file.name}` });
    this._picture.addEventListener("error", () => {
      this._picture.hidden = true;
      this._noPicture.hidden = false;
    });
    this._noPicture = el("p", { class: "muted", text: "The browser cannot show this file.", hidden: true });
    this._heat = el("img", { class: "heat", alt: "", hidden: true });
    this._slider = el("input", { type: "range", min: 0, max: 100, value: 100, id: `${id}-opacity` });
    this._slider.addEventListener("input", () => this._fade());
    this._legend = el("p", { class: "small", role: "status" });
    this._fader = el("div", { hidden: true }, this._legend, el("label", { class: "small", for: `${id}-opacity`, text: "Opacity of the map" }), this._slider);
    this._caption = el("textarea", { id: `${id}-caption`, rows: 3, maxlength: MAX_CAPTION, placeholder: "What does the image show?" });
    this._caption.value = caption;
    this._slots = Object.fromEntries(TASKS.map((task) => [task, el("div", { class: "slot", data: { task } })]));
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
    const figure = el("div", { class: "judged-picture" }, el("div", { class: "overlay" }, this._picture, this._heat, this._noPicture), this._fader, ask);
    const answers = el("div", { class: "answers", "aria-live": "polite" }, Object.values(this._slots));
    this.node = el("article", { class: "card item", "aria-labelledby": `${id}-name` }, head, el("div", { class: "item-body" }, figure, answers));
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
    slot.replaceChildren(el("p", { class: "muted", text: `Asking for the ${task} …` }));
    this.waiting.delete(task);
    try {
      const { answer, timing } = await postForm(`/predict/${task}`, this._form(task), { signal });
      if (turn !== this._turns[task]) return; // asked again meanwhile
      const view = predictionView(answer, { timing, judged: this._judge(task, answer) });
      view.append(this._explainer(task, answer), snippetsView(task, this.file.name, caption));
      slot.replaceChildren(view);
    } catch (error) {
      if (error.name === "AbortError" || turn !== this._turns[task]) return;
      if (error.status === 503) this.waiting.set(task, error.retryAfter);
      slot.replaceChildren(el("h3", { text: spoken(task) }), problemBox(error, () => this.predict([task])));
    }
  }

  _judge(task, { label, probabilities }) {
    if (!this.example) return null;
    const truth = this.example[task];
    const isClass = probabilities.some((entry) => entry.label === truth);
    return { truth, correct: isClass ? label === truth : null };
  }

  _explainer(task, { probabilities }) {
    const classes = el("select", { "aria-label": `Class of the ${task} to explain` }, probabilities.map(({ label }) => el("option", { value: label, text: label })));
    const button = el("button", { type: "button", text: "Show what speaks for" });
    const target = el("div", { "aria-live": "polite" });
    button.addEventListener("click", async () => {
      button.disabled = true;
      target.replaceChildren(el("p", { class: "muted small", text: "Looking where the model looks …" }));
      try {
        target.replaceChildren(...(await this._explain(task, classes.value)));
      } catch (error) {
        if (error.name !== "AbortError") target.replaceChildren(problemBox(error));
      } finally {
        button.disabled = false;
      }
    });
    return el("div", { class: "explainer" }, el("div", { class: "row" }, button, classes), target);
  }

  async _explain(task, label) {
    const { signal } = this.stop;
    const query = new URLSearchParams({ label });
    const [picture, reasons] = await Promise.all([
      postForm(`/explain/${task}?${query}`, this._form(task), { signal, as: "blob" }),
      task === "location" ? postForm(`/explain/${task}?${query}&format=json`, this._form(task), { signal }) : null,
    ]);
    if (this._overlay) URL.revokeObjectURL(this._overlay);
    this._overlay = URL.createObjectURL(picture.answer);
    this._heat.src = this._overlay;
    this._heat.alt = `Map of what speaks for ${label}`;
    this._heat.hidden = false;
    this._noPicture.hidden = true;
    const method = picture.headers.get("X-Explanation-Method") ?? "";
    this._legend.textContent = `Red speaks most for “${label}” (${method === "grad-cam" ? "Grad-CAM" : method}).`;
    this._fader.hidden = false;
    this._fade();
    return [
      el("p", { class: "small muted", text: `The map lies over the picture. It took ${Math.round(picture.timing.total)} ms.` }),
      reasons && inputsView(reasons.answer.by_input),
    ].filter(Boolean);
  }

  _fade() {
    this._heat.style.opacity = String(this._slider.value / 100);
  }
}
