// Filters by any field: the form that adds one, and the chips of those that are active.

import { loadCatalogue } from "./catalogue.js";
import { byId, el, spoken } from "./dom.js";

const OPERATORS = {
  "": "is",
  ne: "is not",
  in: "is one of (separate with |)",
  nin: "is none of (separate with |)",
  all: "has all of (separate with |)",
  contains: "contains",
  startswith: "starts with",
  gte: "is at least",
  lte: "is at most",
  isnull: "is unknown",
  known: "is known",
  regex: "matches the regular expression",
};
const CHIP_WORDS = { ...OPERATORS, "": ":", in: "one of", nin: "is none of", all: "has all of", gte: "≥", lte: "≤", regex: "matches" };

/** A filter in words: "Age ≥ 60". */
export function describe([parameter, value]) {
  const [name, operator = ""] = parameter.split("__");
  if (operator === "isnull") return `${spoken(name)} ${value === "false" ? "is known" : "is unknown"}`;
  const word = CHIP_WORDS[operator] ?? operator;
  return `${spoken(name)}${word === ":" ? ": " : ` ${word} `}${["in", "nin", "all"].includes(operator) ? value.replaceAll("|", ", ") : value}`;
}

/** The conditions that make sense for a field: an order of words helps nobody, and not every value can be unknown. */
function operatorsOf(field) {
  const known = field.operators.map((name) => name.split("__")[1] ?? "").filter((name) => {
    if (name === "isnull") return field.nullable;
    return field.kind === "integer" || (name !== "gte" && name !== "lte");
  });
  // Texts are looked into; nobody types a whole one.
  const first = field.kind === "text" ? "contains" : "";
  return [first, ...known.filter((name) => name !== first)].flatMap((name) => (name === "isnull" ? [name, "known"] : [name]));
}

/**
 * Put the active filters into `target`; `change` takes the new filters. Who removed one with the keyboard goes on
 * with the next, or with `after` behind the last.
 */
export function renderChips(target, filters, change, after) {
  const focused = [...target.querySelectorAll("button")].indexOf(document.activeElement);
  const chips = filters.map((filter) => {
    const text = describe(filter);
    const remove = () => change(filters.filter((other) => other !== filter));
    const button = el("button", { type: "button", "aria-label": `Remove the filter ${text}`, on: { click: remove } });
    button.append(el("span", { class: "text", text }), el("span", { class: "x", "aria-hidden": "true", text: "×" }));
    return el("li", {}, button);
  });
  if (filters.length > 1) {
    const clear = el("button", { type: "button", class: "link", text: "Remove all filters" });
    clear.addEventListener("click", () => change([]));
    chips.push(el("li", {}, clear));
  }
  target.replaceChildren(...chips);
  if (focused < 0) return;
  const buttons = target.querySelectorAll("button");
  (buttons[Math.min(focused, buttons.length - 1)] ?? after).focus();
}

/** Fill the form with the fields there are; `add` takes the new filter. */
export async function setUpFieldFilter(add) {
  const [fields, operators, value] = [byId("filter-field"), byId("filter-operator"), byId("filter-value")];
  const catalogue = await loadCatalogue();
  const group = (label, list) => {
    const options = list.map((field) => el("option", { value: field.name, text: spoken(field.name) }));
    return el("optgroup", { label }, options);
  };
  const caseOnly = [...catalogue.cases.values()].filter((field) => !catalogue.images.has(field.name));
  fields.replaceChildren(group("Image", [...catalogue.images.values()]), group("Case", caseOnly));
  const current = () => catalogue.images.get(fields.value) ?? catalogue.cases.get(fields.value);

  const showField = () => {
    const field = current();
    operators.replaceChildren(...operatorsOf(field).map((name) => el("option", { value: name, text: OPERATORS[name] ?? name })));
    byId("filter-values").replaceChildren(...(field.values ?? []).map((item) => el("option", { value: item })));
    byId("filter-about").textContent = field.about;
    showOperator();
  };
  const showOperator = () => {
    const takesValue = !["isnull", "known"].includes(operators.value);
    value.closest("label").hidden = !takesValue;
    value.required = takesValue;
    value.inputMode = current().kind === "integer" ? "numeric" : "text";
  };
  fields.addEventListener("change", showField);
  operators.addEventListener("change", showOperator);
  byId("field-filter").addEventListener("submit", (event) => {
    event.preventDefault();
    const operator = operators.value;
    if (operator === "known") add([`${fields.value}__isnull`, "false"]);
    else add([operator ? `${fields.value}__${operator}` : fields.value, operator === "isnull" ? "true" : value.value.trim()]);
    value.value = "";
  });
  fields.value = "caption";
  showField();
  return catalogue;
}
