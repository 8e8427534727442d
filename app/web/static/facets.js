// The facets at the side of the browse page: the most frequent values with their counts, to be checked.

import { at } from "./address.js";
import { getJson } from "./api.js";
import { loadCatalogue } from "./catalogue.js";
import { byId, el, number, spoken } from "./dom.js";

const ORDER = ["modality", "location_category", "location", "plane", "age_band", "sex", "split", "topic.category"];
const FEW = 6;
const opened = new Set();
let aliases = {}; // other names of fields that filters take

/** The parameters that one facet may set. */
function parametersOf(name) {
  if (name === "age_band") return ["age", "age__gte", "age__lte", "age__isnull"];
  return [name, `${name}__in`, `${name}__isnull`];
}

/** A parameter by the name of its field: "modality__in" of "type__in". */
const canonical = (parameter) => parameter.replace(/^.+?(?=__|$)/, (name) => aliases[name] ?? name);

const of = (filters, names) => filters.filter(([name]) => names.includes(canonical(name)));

/** A value as the API compares it: letter case and spaces at commas make no difference. */
const folded = (value) => String(value).toLowerCase().split(",").map((part) => part.trim()).join(", ");

/** The values of a list, folded: separated by bars, else by the commas that are no part of a value. */
function valuesOf(list, entries) {
  if (list.includes("|")) return list.split("|").map((value) => folded(value.trim()));
  const possible = new Set(entries.map((entry) => folded(entry.value)));
  const parts = folded(list).split(", ");
  const values = [];
  while (parts.length) {
    let length = parts.length;
    while (length > 1 && !possible.has(parts.slice(0, length).join(", "))) length -= 1;
    values.push(parts.splice(0, length).join(", "));
  }
  return values;
}

/** What /facets answers, where a facet with a filter of its own also counts the values that are not chosen. */
export async function loadFacets(result, options) {
  const everything = await result.query();
  if (everything === null) return { total: 0, cases: 0, facets: {} };
  const base = await getJson(at("/facets"), everything, options);
  const { filters } = result.state;
  if (filters.length) ({ aliases } = await loadCatalogue());
  const own = (name) => of(filters, parametersOf(name)).map(([parameter]) => parameter);
  const chosen = Object.keys(base.facets).filter((name) => own(name).length);
  const others = await Promise.all(
    chosen.map(async (name) => getJson(at("/facets"), (await result.query(own(name))) ?? [], options)),
  );
  chosen.forEach((name, index) => {
    base.facets[name] = others[index].facets[name];
  });
  return base;
}

function conditionOf(name, entry) {
  if (entry.filter) return Object.entries(entry.filter);
  return entry.value === null ? [[`${name}__isnull`, "true"]] : [[name, String(entry.value)]];
}

function isChosen(name, entry, entries, filters) {
  const several = of(filters, [`${name}__in`]).flatMap(([, list]) => valuesOf(list, entries));
  if (entry.value !== null && several.includes(folded(entry.value))) return true;
  return conditionOf(name, entry).every(([key, value]) => of(filters, [key]).some(([, other]) => folded(other) === folded(value)));
}

/** The filters after a value was checked or unchecked: several values of a field mean any of them. */
function toggled(name, entry, entries, filters) {
  const rest = filters.filter(([key]) => !parametersOf(name).includes(canonical(key)));
  const wasChosen = isChosen(name, entry, entries, filters);
  const condition = conditionOf(name, entry);
  const isPlain = condition.length === 1 && condition[0][0] === name;
  // “Unknown” and a value cannot both be asked for, nor two ranges of ages: the last choice holds.
  if (!isPlain) return wasChosen ? rest : [...rest, ...condition];
  const values = entries
    .filter((other) => other.value !== null && (other === entry ? !wasChosen : isChosen(name, other, entries, filters)))
    .map((other) => String(other.value));
  if (!values.length) return rest;
  return [...rest, values.length === 1 ? [name, values[0]] : [`${name}__in`, values.join("|")]];
}

/**
 * Put the facets into `target`. `change` takes a function from the filters of that moment, which may be others than those
 * that are shown here, to the new ones.
 */
export function renderFacets(target, { facets }, filters, change) {
  const focused = target.contains(document.activeElement) ? document.activeElement.id : "";
  // What is being typed stays.
  const typed = focused.startsWith("facet-age__") ? [...target.querySelectorAll(".range input")].map(({ id, value }) => [id, value]) : [];
  const known = Object.keys(facets);
  const names = [...ORDER.filter((name) => known.includes(name)), ...known.filter((name) => !ORDER.includes(name))];
  target.replaceChildren(...names.map((name) => facet(name, facets[name], filters, change)));
  for (const [id, value] of typed) if (byId(id)) byId(id).value = value;
  if (focused) byId(focused)?.focus();
}

/** The choice that takes the filters of age away. */
function anyAge(filters, change) {
  const names = parametersOf("age_band");
  const box = el("input", { type: "radio", name: "age_band", id: "facet-age_band", checked: !of(filters, names).length });
  box.addEventListener("change", () => change((current) => current.filter(([key]) => !names.includes(key))));
  return el("label", {}, box, el("span", { class: "grow", text: "Any" }));
}

/** A form for any range of ages; both ends belong to it. */
function ageRange(filters, change) {
  const names = parametersOf("age_band");
  const [from, to] = [["age__gte", "from"], ["age__lte", "to"]].map(([name, text]) => {
    const value = of(filters, [name])[0]?.[1];
    return el("label", {}, text, el("input", { type: "number", name, id: `facet-${name}`, min: 0, max: 130, value, "aria-label": `Age ${text}` }));
  });
  const form = el("form", { class: "range" }, from, to, el("button", { text: "Apply" }));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const typed = [...new FormData(form)].filter(([, value]) => value !== "");
    change((current) => [...current.filter(([key]) => !names.includes(key)), ...typed]);
  });
  return form;
}

/** Boxes of which several mean any of them; of ages, which are filtered by one range, one can be chosen. */
function facet(name, entries, filters, change) {
  const isSingle = name === "age_band";
  const words = (value) => {
    if (value === null) return "Unknown";
    return isSingle ? String(value).replace("-", "–") : String(value);
  };
  const rows = entries.map((entry, index) => {
    const checked = isChosen(name, entry, entries, filters);
    const id = `facet-${name}-${String(entry.value).replace(/\W+/g, "-")}`;
    const box = el("input", { type: isSingle ? "radio" : "checkbox", name: isSingle ? name : null, id, checked });
    box.addEventListener("change", () => change((current) => toggled(name, entry, entries, current)));
    const text = el("span", { class: "grow", text: words(entry.value) });
    const label = el("label", {}, box, text, el("span", { class: "count", text: number(entry.count) }));
    return el("li", { hidden: index >= FEW && !checked && !opened.has(name) }, label);
  });
  if (isSingle) rows.unshift(el("li", {}, anyAge(filters, change)));
  const list = el("ul", {}, rows);
  const hidden = rows.filter((row) => row.hidden).length;
  const more = hidden > 0 && el("button", { type: "button", class: "link", id: `more-${name}`, text: `${hidden} more` });
  if (more) {
    more.addEventListener("click", () => {
      opened.add(name);
      const first = rows.find((row) => row.hidden);
      for (const row of rows) row.hidden = false;
      more.remove();
      first.querySelector("input").focus();
    });
  }
  const legend = el("legend", { text: name === "age_band" ? "Age" : spoken(name) });
  return el("fieldset", { class: "facet" }, legend, list, more, isSingle && ageRange(filters, change));
}
