// What the dataset says of a case and of an image, with a badge at every doubtful value.

import { getJson } from "./api.js";
import { loadCatalogue } from "./catalogue.js";
import { el, number, plural, spoken, webLink } from "./dom.js";
import { Flags } from "./flags.js";

const TEXTS = ["history", "exam", "findings", "differential_diagnosis", "diagnosis", "diagnosis_by", "treatment_follow_up", "discussion", "media"];
const TOPIC = ["category", "acr_code", "keywords", "disease_discussion", "reference"];
const LONG = 1500;

/** The value of a field as it is in the dataset, found by what the catalogue says of its source. */
async function recorded(kind, address, field) {
  const [catalogue, raw] = await Promise.all([loadCatalogue(), getJson(address, [["raw", "true"]])]);
  const source = catalogue[kind].get(field)?.source ?? "";
  return source.split(".").reduce((value, key) => value?.[key], raw);
}

const flagsOf = (record, kind) => new Flags(record.quality_flags, kind, (field) => recorded(`${kind}s`, record.links.self, field));

/** The line below the title. */
export function caseLine(record) {
  const patient = [record.age !== null && `${record.age} years`, record.sex].filter(Boolean).join(", ");
  const parts = [`Case ${record.u_id}`, `${record.split} split`, plural(record.images.length, "image"), record.location, patient];
  return [parts.filter(Boolean).join(" · "), " ", ...flagsOf(record, "case").of("title")];
}

/** All texts of a case and of its topic. */
export function caseText(record) {
  const flags = flagsOf(record, "case");
  const absent = [];
  const block = (heading, name, value) => {
    if (!value?.length && !flags.has(name)) absent.push(spoken(name.replace("topic.", "topic ")).toLowerCase());
    else return textBlock(heading, name, value, flags.of(name));
    return null;
  };
  const texts = TEXTS.map((name) => block(spoken(name), name, record[name]));
  const { topic } = record;
  const ofTopic = TOPIC.map((name) => block(spoken(name).replace("Acr", "ACR"), `topic.${name}`, topic[name]));
  const links = topic.external_links.map((link) => el("li", {}, webLink(link)));
  const about = flags.of("");
  return [
    el("div", { class: "card" }, el("h2", { text: "Case" }), texts),
    el(
      "div",
      { class: "card" },
      el("h2", {}, "Topic", topic.title && `: ${topic.title}`),
      ofTopic,
      links.length > 0 && el("div", { class: "block" }, el("h3", {}, "Links ", flags.of("topic.external_links")), el("ul", {}, links)),
    ),
    absent.length > 0 && el("p", { class: "muted small", text: `Not in the dataset: ${absent.join(", ")}.` }),
    about.length > 0 && el("p", { class: "muted small" }, "About these texts: ", about),
  ].filter(Boolean);
}

function textBlock(heading, name, value, badges) {
  const text = value && el("p", { class: "long", text: value });
  const body = value?.length > LONG && name !== "discussion"
    ? el("details", {}, el("summary", { text: `Read ${number(value.length)} characters` }), text)
    : text;
  return el("div", { class: "block", data: { field: name } }, el("h3", {}, heading, " ", badges), body);
}

/** The caption of an image. */
export const imageCaption = (image) => [image.caption ?? el("span", { class: "muted", text: "No caption." }), " ", ...flagsOf(image, "image").of("caption")];

/** The other fields of an image, as terms and descriptions. */
export function imageFacts(image) {
  const flags = flagsOf(image, "image");
  const known = (value) => (value === null || value === undefined ? "unknown" : String(value));
  const source = [["source_url", "image"], ["article_url", "case"]].filter(([name]) => image[name]);
  const rows = [
    ["modality_detail", "Modality", `${image.modality} (${image.modality_detail})`],
    ["plane", "Plane", known(image.plane)],
    ["location", "Location", `${known(image.location)} (${image.location_category})`],
    ["age", "Age", known(image.age)],
    ["sex", "Sex", known(image.sex)],
    ["acr_codes", "ACR codes", known(image.acr_codes)],
    image.figure_part && ["figure_part", "Figure part", image.figure_part],
    ["split", "Split", image.split],
    ["image", "File", el("a", { href: image.links.file, download: `${image.image}.png`, text: `${image.image}.png` })],
    ["size", "Size", `${image.width} × ${image.height} pixels`],
    ["source_url", "Source", source.length ? source.map(([name, text]) => [webLink(image[name], text), " "]).flat() : "unknown"],
    ["links", "API", el("a", { href: image.links.self, text: image.links.self })],
  ];
  return rows.filter(Boolean).flatMap(([field, name, value]) => [el("dt", { text: name }), el("dd", { data: { field } }, value, " ", flags.of(field))]);
}
