// What the quality flags mean, in a sentence; a flag that is not known here is shown by its name.

import { el, spoken } from "./dom.js";

const MEANING = {
  caption_placeholder: "The dataset has only a placeholder instead of a caption.",
  caption_uninformative: "The caption says nothing about what is seen.",
  caption_whitespace: "Line breaks or tabs in the caption were folded.",
  age_zero: "The age is recorded as 0, which mostly stands for unknown.",
  sex_unknown: "The sex is not recorded.",
  plane_missing: "The plane is not recorded.",
  plane_not_anatomical: "The recorded plane is not one of the anatomical planes.",
  location_left_blank: "The location is recorded as “Left Blank”.",
  location_not_anatomical: "The recorded location is not a part of the body.",
  acr_unknown: "The ACR code is the placeholder for unknown.",
  modality_detail_whitespace: "Spaces around the detailed modality were removed.",
  source_url_missing: "The address of the original image is not recorded.",
  keywords_run_together: "Keywords run into each other in the source.",
  link_without_scheme: "A link has no https://; one was added where it can be one.",
  html_entities: "The source holds HTML entities; they were decoded.",
  line_ends: "Windows line ends were folded.",
  control_characters: "The source holds control characters.",
  private_use_characters: "The source holds characters that only its own font knows.",
  images_disagree: "The images of the case disagree about age, sex or location.",
};

function meaning(flag) {
  if (MEANING[flag]) return MEANING[flag];
  if (flag.endsWith("_placeholder")) {
    return `“${spoken(flag.replace("_placeholder", ""))}” holds only a placeholder in the dataset, and is left out.`;
  }
  return `Doubt noted by the service: ${spoken(flag)}.`;
}

/** Badges that explain themselves when opened; null when there is nothing to doubt. */
export function flagList(flags) {
  if (!flags.length) return null;
  const badges = flags.map((flag) =>
    el("details", { class: "flag" }, el("summary", { class: "tag warn", text: spoken(flag) }), el("p", { class: "small", text: meaning(flag) })),
  );
  return el("div", { class: "flags", role: "group", "aria-label": "Doubts about this record" }, badges);
}
