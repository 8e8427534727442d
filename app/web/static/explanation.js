// Explains a prediction: a heatmap over the image, and what each input alone would predict.

import { at } from "./address.js";
import { el, problemBox } from "./dom.js";
import { postForm } from "./post.js";
import { bars } from "./prediction.js";

let count = 0;

/**
 * The part of a prediction that explains it on demand.
 *
 * `formOf` makes the form of the request; `addressOf` finds that of the image, which the map is laid over where the
 * browser can show it; `signal` ends what is under way; `keep` is given the address of each map, to be let go with
 * the rest of the item.
 */
export function explainer(task, { probabilities }, { formOf, addressOf, signal, keep }) {
  const classes = el("select", { "aria-label": `Class of the ${task} to explain` }, probabilities.map(({ label }) => el("option", { value: label, text: label })));
  const button = el("button", { type: "button", text: "Explain" });
  const target = el("div", { "aria-live": "polite" });
  button.addEventListener("click", async () => {
    button.disabled = true;
    target.replaceChildren(el("p", { class: "muted small", text: "Computing heatmap …" }));
    try {
      target.replaceChildren(...(await explain(task, classes.value, { formOf, addressOf, signal, keep })));
      target.scrollIntoView({ block: "nearest" });
    } catch (error) {
      if (error.name !== "AbortError") target.replaceChildren(problemBox(error, () => button.click()));
    } finally {
      button.disabled = false;
    }
  });
  return el("div", { class: "explainer" }, el("div", { class: "row" }, button, classes), target);
}

async function explain(task, label, { formOf, addressOf, signal, keep }) {
  const query = new URLSearchParams({ label });
  const [picture, reasons] = await Promise.all([
    postForm(at(`/explain/${task}?${query}`), formOf(), { signal, as: "blob" }),
    task === "location" ? postForm(at(`/explain/${task}?${query}&format=json`), formOf(), { signal }) : null,
  ]);
  const map = URL.createObjectURL(picture.answer);
  keep(map);
  const method = picture.headers.get("X-Explanation-Method") ?? "";
  const words = `Red areas contributed most to “${label}” (${method === "grad-cam" ? "Grad-CAM" : method}, ${picture.timing.ms} ms).`;
  return [mapView(addressOf(), map, label, words), reasons && inputsView(reasons.answer.by_input)].filter(Boolean);
}

/** The heatmap over the image, with a slider between the two. */
function mapView(address, map, label, words) {
  const heat = el("img", { class: "heat", src: map, alt: `Heatmap for ${label}` });
  const below = el("img", { src: address, alt: "" });
  below.addEventListener("error", () => below.remove()); // a DICOM file: the map shows it as well
  const id = `opacity-${(count += 1)}`;
  const slider = el("input", { type: "range", min: 0, max: 100, value: 100, id });
  slider.addEventListener("input", () => (heat.style.opacity = String(slider.value / 100)));
  return el(
    "figure",
    { class: "map" },
    el("div", { class: "overlay" }, below, heat),
    el("figcaption", { class: "small", text: words }),
    el("label", { class: "small", for: id, text: "Opacity of the heatmap" }),
    slider,
  );
}

/** The prediction from each input alone. */
function inputsView(byInput) {
  const column = (name, ranking, missing) =>
    el(
      "div",
      { class: "alone" },
      el("h4", { text: `${name} alone` }),
      ranking ? bars(ranking.probabilities.slice(0, 3)) : el("p", { class: "muted small", text: missing }),
    );
  return el(
    "div",
    { class: "inputs" },
    column("Image", byInput.image, "This model does not predict from the image alone."),
    column("Caption", byInput.caption, "No caption was given, or this model does not predict from the caption alone."),
  );
}
