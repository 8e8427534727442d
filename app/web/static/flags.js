// What the quality flags of the dataset mean: badges beside the values that they are about.

import { el, spoken } from "./dom.js";

const PLACEHOLDER = ["not filled in", "The dataset holds a placeholder here instead of a text."];
const UNKNOWN_CODE = ["not coded", "The dataset has the code -1.-1 here, which stands for no code."];

// Flag: the field that it is about, the badge, the explanation.
const OF_IMAGES = {
  caption_placeholder: ["caption", ...PLACEHOLDER],
  caption_uninformative: ["caption", "says little", "The caption repeats how the image was made, not what it shows."],
  caption_whitespace: ["caption", "tidied", "The caption held line breaks or tabs; they are spaces here."],
  age_zero: ["age", "recorded as 0", "An age of 0 stands for “unknown” in most cases that have it, so no age is given."],
  sex_unknown: ["sex", "recorded as N/A", "The dataset does not say the sex."],
  plane_missing: ["plane", "missing", "The dataset has no plane for this image."],
  plane_not_anatomical: ["plane", "no plane", "This names a kind of picture, not a section through the body."],
  location_left_blank: ["location", "left blank", "The dataset says “Left Blank”; models are neither trained nor scored on it."],
  location_not_anatomical: ["location", "doubtful", "This value of the dataset names no part of the body, though models learn it as a class."],
  acr_unknown: ["acr_codes", ...UNKNOWN_CODE],
  modality_detail_whitespace: ["modality_detail", "tidied", "Spaces around the value were removed."],
  source_url_missing: ["source_url", "no source", "The dataset's list of sources does not name this image."],
};

const OF_CASES = {
  acr_unknown: ["topic.acr_code", ...UNKNOWN_CODE],
  keywords_run_together: ["topic.keywords", "run together", "Words lost the separators between them in the dataset."],
  link_without_scheme: ["topic.external_links", "completed", "The address had no https:// in the dataset; it was added."],
  html_entities: ["", "entities decoded", "Texts of this case held HTML entities such as &#39;; they are characters here."],
  line_ends: ["", "line ends", "Texts of this case mixed kinds of line ends; here they have one."],
  control_characters: ["", "control characters", "Texts of this case held control characters; they were removed."],
  private_use_characters: ["", "odd symbols", "Texts of this case held symbols of one font only; bullets and arrows replace what is known."],
  images_disagree: ["", "images disagree", "The images of this case differ in age, sex or location; where they do, the case has no value."],
};

/** The field, label and explanation of a flag; an unknown flag, of a newer service, is shown by its name. */
function entryOf(flag, table) {
  if (flag in table) return table[flag];
  const field = flag.match(/^(\w+)_placeholder$/)?.[1];
  return field ? [field, ...PLACEHOLDER] : ["", spoken(flag), "The service marks this value as doubtful."];
}

function badge([, label, explanation], recorded) {
  const text = el("p", { class: "small", text: explanation });
  const details = el("details", { class: "flag" }, el("summary", { class: "tag warn", text: label }), text);
  details.addEventListener("toggle", async () => {
    if (!details.open || !recorded || details.dataset.asked) return;
    details.dataset.asked = "yes";
    const value = await recorded().catch(() => undefined);
    if (typeof value === "string") text.append(" Recorded: ", el("q", { text: value.length > 200 ? `${value.slice(0, 200)}…` : value }));
  });
  return details;
}

/** Hands out the badges of one image or case by field. `recordedOf(field)` finds the value as it is in the dataset. */
export class Flags {
  constructor(flags, kind, recordedOf = null) {
    const table = kind === "image" ? OF_IMAGES : OF_CASES;
    this._entries = flags.map((flag) => entryOf(flag, table));
    this._recordedOf = recordedOf;
  }

  /** The badges of a field; of "" those that are about no single field. */
  of(field) {
    const recorded = field && this._recordedOf ? () => this._recordedOf(field) : null;
    return this._entries.filter(([of]) => of === field).map((entry) => badge(entry, recorded));
  }

  /** Whether anything is to be said of a field. */
  has(field) {
    return this._entries.some(([of]) => of === field);
  }
}
