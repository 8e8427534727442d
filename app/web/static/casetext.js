// What the dataset says of a case and of an image, with a badge at every doubtful value.

import { getJson } from "./api.js";
import { loadCatalogue } from "./catalogue.js";
import { el, number, plural, spoken } from "./dom.js";
import { Flags } from "./flags.js";

/** A web address as a link if it is one, else as text: data may hold any scheme. */
function webLink(address, text = address) {
  let url = null;
  try {
    url = new URL(address);
  } catch {
    return document.createTextNode(text);
  }
  if (url.protocol !== "https:" && url.protocol !== "http:") return document.createTextNode(text);
  return el("a", { href: url.href, rel: "noopener noreferrer external", target: "_blank", text });
}

// What quiz mode lets be seen: the question, then the findings, then everything.
const TEXTS = [
  ["history", 0], ["exam", 0], ["findings", 2], ["differential_diagnosis", 3], ["diagnosis", 3], ["diagnosis_by", 3],
  ["treatment_follow_up", 3], ["discussion", 3], ["media", 3],
];
// Fields that stand in the title, the line below it or the facts of an image; every other text of a case gets a block.
const ELSEWHERE = new Set(["u_id", "split", "subsplit", "title", "location", "location_category", "sex", "modalities", "planes", "age", "image_count", "quality_flags"]);
const TOPIC = ["category", "acr_code", "keywords", "disease_discussion", "reference"];
const LONG = 1500;
const HEADINGS = { treatment_follow_up: "Treatment and follow-up", acr_code: "ACR code" };

/** The value of a field as it is in the dataset, found by what the catalogue says of its source. */
async function recorded(kind, address, field) {
  const [catalogue, raw] = await Promise.all([loadCatalogue(), getJson(address, [["raw", "true"]])]);
  const source = catalogue[kind].get(field)?.source ?? "";
  return source.split(".").reduce((value, key) => value?.[key], raw);
}

const flagsOf = (record, kind) => new Flags(record.quality_flags, kind, (field) => recorded(`${kind}s`, record.links.self, field));

/** The line below the title. `level`: see quiz.js; 3 shows everything. */
export function caseLine(record, level = 3) {
  const patient = [record.age !== null && plural(record.age, "year"), record.sex].filter(Boolean).join(", ");
  const place = level > 0 && [record.modalities.join(" and "), record.location];
  const parts = [`Case ${record.u_id}`, level === 3 && `${record.split} split`, plural(record.images.length, "image"), ...(place || []), patient];
  return [parts.filter(Boolean).join(" · "), " ", ...(level === 3 ? flagsOf(record, "case").of("title") : [])];
}

const headingOf = (name) => HEADINGS[name] ?? spoken(name);

/** All texts of a case and of its topic, as far as the level shows them. */
export function caseText(record, level = 3) {
  const flags = flagsOf(record, "case");
  const absent = [];
  const earlier = new Map(); // texts and the headings that they stand under
  const block = (heading, name, value) => {
    if (!value?.length && !flags.has(name)) {
      absent.push(heading.toLowerCase());
      return null;
    }
    const same = value?.length > 0 && earlier.get(value);
    if (value?.length) earlier.set(value, earlier.get(value) ?? heading);
    return same ? sameBlock(heading, name, same, flags.of(name)) : textBlock(heading, name, value, flags.of(name));
  };
  const texts = TEXTS.filter(([, from]) => from <= level).map(([name]) => block(headingOf(name), name, record[name]));
  const card = el("div", { class: "card" }, el("h2", { text: "Case" }), texts);
  if (level < 3) return [card];
  card.append(...otherTexts(record).map(([name, text]) => block(headingOf(name), name, text)));
  const { topic } = record;
  const ofTopic = TOPIC.map((name) => block(headingOf(name), `topic.${name}`, topic[name]));
  const links = topic.external_links.map((link) => el("li", {}, webLink(link)));
  const about = flags.of("");
  return [
    card,
    el(
      "div",
      { class: "card" },
      el("h2", {}, "Topic", topic.title && topic.title !== record.title && `: ${topic.title}`),
      ofTopic,
      links.length > 0 && el("div", { class: "block" }, el("h3", {}, "Links ", flags.of("topic.external_links")), el("ul", {}, links)),
    ),
    absent.length > 0 && el("p", { class: "muted small", text: `Not in the dataset: ${absent.join(", ")}.` }),
    about.length > 0 && el("p", { class: "muted small" }, "About these texts: ", about),
  ].filter(Boolean);
}

/** The texts and numbers of a case that have no place of their own on the page, such as those of a field that was added. */
function otherTexts(record) {
  const isText = (value) => ["string", "number"].includes(typeof value) || (Array.isArray(value) && value.length > 0 && value.every((each) => typeof each === "string"));
  const placed = new Set([...TEXTS.map(([name]) => name), ...ELSEWHERE]);
  return Object.entries(record)
    .filter(([name, value]) => !placed.has(name) && isText(value))
    .map(([name, value]) => [name, [value].flat().join(", ")]);
}

/** A text that stands on the page already. */
function sameBlock(heading, name, earlier, badges) {
  const words = el("p", { class: "muted", text: `The same text as “${earlier}”.` });
  return el("div", { class: "block", data: { field: name } }, el("h3", {}, heading, " ", badges), words);
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
