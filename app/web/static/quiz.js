// Quiz mode: an unknown case, the reader's answer against the label and the model, and the score.

import { at } from "./address.js";
import { getJson, TASKS } from "./api.js";
import { loadCatalogue } from "./catalogue.js";
import { el, percent, spoken } from "./dom.js";

const STORED = "medpix-quiz";
const TRIES = 8;

/** The score and the cases that were answered; of this browser alone. */
function readScore() {
  const none = { asked: 0, modality: 0, location: 0, model: { asked: 0, modality: 0, location: 0 }, cases: [] };
  try {
    return { ...none, ...JSON.parse(localStorage.getItem(STORED) ?? "{}") };
  } catch {
    return none;
  }
}

function keepScore(score) {
  try {
    localStorage.setItem(STORED, JSON.stringify(score));
  } catch {
    // No room or no permission: it lasts as long as the page.
  }
}

/** The first image of a random case other than `shown`, rather one not answered yet; or null. */
export async function randomCase(result, shown) {
  const answered = new Set(readScore().cases);
  const params = await result.query();
  if (params === null) return null;
  const images = async (...extra) => (await getJson(at("/images"), [...params, ...extra, ["fields", "image,u_id"]])).items;
  const seed = Math.floor(Math.random() * 2 ** 31);
  const drawn = (await images(["sample", TRIES], ["sample_by", "case"], ["seed", seed])).filter((each) => each.u_id !== shown);
  const fresh = drawn.filter((each) => !answered.has(each.u_id));
  const from = fresh.length ? fresh : drawn;
  const found = from[seed % from.length];
  if (!found || params.some(([name]) => name === "u_id")) return found?.image ?? null;
  return (await images(["u_id", found.u_id], ["limit", 1]))[0].image;
}

function scoreView(onReset) {
  const score = readScore();
  if (!score.asked) return el("p", { class: "muted small", text: "No cases answered yet. The score is stored in this browser only." });
  const line = (words, counts) => `${words}: modality ${counts.modality} of ${counts.asked}, location ${counts.location} of ${counts.asked}`;
  const model = score.model.asked ? ` ${line("The model on the same images", score.model)}.` : "";
  const reset = el("button", { type: "button", class: "link", text: "Reset score" });
  reset.addEventListener("click", () => {
    keepScore({});
    onReset();
  });
  return el("p", { class: "small" }, el("span", { class: "score", text: `${line("Your score", score)}.${model} Stored in this browser only. ` }), reset);
}

async function locations() {
  try {
    return (await loadCatalogue()).images.get("location").values ?? [];
  } catch {
    return [];
  }
}

/** The model's answers to an image without its caption, which the reader has not seen either; null without models. */
async function modelAnswers(image) {
  try {
    const answer = await getJson(`${image.links.self}/predict`, [["caption", "false"]]);
    return Object.fromEntries(TASKS.map((task) => [task, answer[task].prediction]));
  } catch {
    return Object.fromEntries(TASKS.map((task) => [task, null]));
  }
}

/**
 * The panel of a case. `level`: 0 hides all, 1 shows modality and location, 2 findings and captions too, 3 everything.
 * `onLevel` is told to show more.
 */
export class Quiz {
  constructor(root, { onLevel, onRandom }) {
    [this.root, this.onLevel, this.onRandom] = [root, onLevel, onRandom];
    this.level = 0;
    this._answers = null;
  }

  /** Begin with a case. `image()`: the image that is shown when the reader answers. */
  begin(record, image) {
    [this.record, this.image] = [record, image];
    this.level = 0;
    this._answers = null;
    return this._draw();
  }

  leave() {
    this.record = null;
    this.root.replaceChildren();
  }

  _next(level) {
    this.level = level;
    this.onLevel(level);
    this._draw();
  }

  async _draw() {
    const { record } = this;
    const parts = [el("h2", { id: "quiz-title", tabindex: -1, text: this.level === 3 ? "The answer" : "Unknown case" })];
    if (this.level === 0) parts.push(await this._question());
    if (this.record !== record) return; // left meanwhile
    if (this._answers) parts.push(this._table());
    if (this.level > 0) parts.push(this._buttons());
    parts.push(scoreView(() => this._draw()));
    // A button that replaces itself would lose the focus to the page.
    const hadFocus = this.root.contains(document.activeElement);
    this.root.replaceChildren(el("section", { class: "card quiz", "aria-labelledby": "quiz-title" }, parts));
    if (hadFocus) parts[0].focus({ preventScroll: true });
  }

  async _question() {
    const radios = ["CT", "MR"].map((value) => el("label", { class: "row" }, el("input", { type: "radio", name: "modality", value, required: true }), value));
    const options = [el("option", { value: "", text: "choose" }), ...(await locations()).map((value) => el("option", { value, text: value }))];
    const select = el("select", { name: "location", required: true }, options);
    const skip = el("button", { type: "button", text: "Show without answering", on: { click: () => this._next(1) } });
    const form = el(
      "form",
      { class: "quiz-form" },
      el("fieldset", { class: "row" }, el("legend", { text: "Modality of this image" }), radios),
      el("label", {}, "Location ", select),
      el("p", { class: "row" }, el("button", { class: "primary", text: "Check my answer" }), skip),
    );
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this._check(Object.fromEntries(new FormData(form)));
    });
    return form;
  }

  async _check(own) {
    const { record } = this;
    const image = this.image();
    for (const part of this.root.querySelectorAll("button, input, select")) part.disabled = true;
    const model = await modelAnswers(image);
    if (this.record !== record) return;
    this._answers = TASKS.map((task) => ({ task, own: own[task], label: image[task], model: model[task] }));
    this._count();
    this._next(1);
    this.root.querySelector("#quiz-title").focus({ preventScroll: true });
  }

  /** Each case counts once. */
  _count() {
    const score = readScore();
    this._isKnown = score.cases.includes(this.record.u_id);
    if (this._isKnown) return;
    const right = (answer) => this._answers.map(({ task, label, ...row }) => [task, answer(row) === label && label !== null]);
    score.asked += 1;
    for (const [task, isRight] of right((row) => row.own)) score[task] += Number(isRight);
    if (this._answers.every((row) => row.model)) {
      score.model.asked += 1;
      for (const [task, isRight] of right((row) => row.model.label)) score.model[task] += Number(isRight);
    }
    score.cases = [...score.cases, this.record.u_id].slice(-5000);
    keepScore(score);
  }

  _table() {
    const mark = (answer, label) => el("span", { class: `tag ${answer === label ? "good" : "bad"}`, text: answer === label ? "right" : "wrong" });
    const row = ({ task, own, label, model }) =>
      el(
        "tr",
        { data: { task } },
        el("th", { scope: "row", text: spoken(task) }),
        el("td", {}, el("strong", { text: label ?? "unknown" })),
        el("td", {}, own, " ", label && mark(own, label)),
        el("td", {}, model ? [`${model.label} (${percent(model.probabilities[0].probability, 0)}) `, label && mark(model.label, label)].filter(Boolean) : "no model"),
      );
    const head = ["", "Label", "You", "Model"].map((text) => (text ? el("th", { scope: "col", text }) : el("td")));
    const note = this._isKnown ? "You answered this case before, so it is not counted again. " : "";
    return el(
      "div",
      {},
      el("table", {}, el("thead", {}, el("tr", {}, head)), el("tbody", {}, this._answers.map(row))),
      el("p", { class: "muted small", text: note + (this._answers.some(({ model }) => model) ? `The model saw the image without its caption${this.record.split === "train" ? " and was trained on this case" : ""}.` : "") }),
    );
  }

  _buttons() {
    const steps = { 1: "Show findings and captions", 2: "Show the diagnosis and everything else" };
    const reveal = steps[this.level] && el("button", { type: "button", class: "primary", text: steps[this.level], on: { click: () => this._next(this.level + 1) } });
    const random = el("button", { type: "button", class: this.level === 3 ? "primary" : "", text: "Next unknown case", on: { click: () => this.onRandom() } });
    return el("p", { class: "row" }, reveal, random);
  }
}

