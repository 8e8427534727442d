// What the quality flags of the dataset mean: badges beside the values concerned.

import { el, spoken } from "./dom.js";

const PLACEHOLDER = ["not filled in", "The dataset has a placeholder here instead of a text."];
const UNKNOWN_CODE = ["not coded", "The dataset has the code -1.-1 here, which means that no code was assigned."];

// Flag: the field that it is about, the badge, the explanation.
const OF_IMAGES = {
  caption_placeholder: ["caption", ...PLACEHOLDER],
  caption_uninformative: ["caption", "uninformative", "The caption repeats how the image was acquired, not what it shows."],
  caption_whitespace: ["caption", "whitespace cleaned", "The caption has line breaks or tabs in the dataset; they are spaces here."],
  age_zero: ["age", "recorded as 0", "In most cases an age of 0 stands for “unknown”, so no age is given here."],
  sex_unknown: ["sex", "recorded as N/A", "The sex is not recorded in the dataset."],
  plane_missing: ["plane", "missing", "The dataset has no plane for this image."],
  plane_not_anatomical: ["plane", "not a plane", "This value names a type of image, not an anatomical plane."],
  location_left_blank: ["location", "left blank", "The dataset has “Left Blank” here; models are neither trained nor evaluated on it."],
  location_not_anatomical: ["location", "doubtful", "This value is not a part of the body, although it is one of the classes."],
  acr_unknown: ["acr_codes", ...UNKNOWN_CODE],
  modality_detail_whitespace: ["modality_detail", "whitespace cleaned", "Spaces around the value were removed."],
  source_url_missing: ["source_url", "no source", "This image is missing from the dataset's list of sources."],
};

const OF_CASES = {
  acr_unknown: ["topic.acr_code", ...UNKNOWN_CODE],
  keywords_run_together: ["topic.keywords", "separators lost", "In the dataset these words are joined without separators."],
  link_without_scheme: ["topic.external_links", "https:// added", "The address has no https:// in the dataset; it was added here."],
  html_entities: ["", "entities decoded", "Texts of this case contain HTML entities such as &#39;; they are decoded here."],
  line_ends: ["", "line endings", "Texts of this case mix line endings; they are unified here."],
  control_characters: ["", "control characters", "Texts of this case contain control characters; they were removed."],
  private_use_characters: ["", "symbols replaced", "Texts of this case use symbols of a single font; known ones were replaced by bullets and arrows."],
  images_disagree: ["", "images disagree", "The images of this case differ in age, sex or location; where they differ, the case has no value."],
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

/** The badges of one image or case, by field. `recordedOf(field)` finds the value as it is in the dataset. */
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
