// Makes elements. Data only ever become text or checked attributes, never markup.

/** An element. `props`: attributes; `class`, `text`, `on` (event handlers) and `data` are special. */
export function el(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "class") node.className = value;
    else if (name === "text") node.textContent = value;
    else if (name === "data") Object.assign(node.dataset, value);
    else if (name === "on") for (const [type, handler] of Object.entries(value)) node.addEventListener(type, handler);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

export const byId = (id) => document.getElementById(id);

const whole = new Intl.NumberFormat("en");
export const number = (value) => whole.format(value);
export const percent = (value, digits = 1) => `${(100 * value).toFixed(digits)}%`;
export const plural = (count, one, many = `${one}s`) => `${number(count)} ${count === 1 ? one : many}`;

/** "topic.category" as people say it. */
export function spoken(name) {
  const words = name.replaceAll("_", " ").replaceAll(".", " ").replace("u id", "case id").replace("acr", "ACR");
  return words.charAt(0).toUpperCase() + words.slice(1);
}

/** A sentence about something that went wrong, with a button to try again unless the request itself was wrong. */
export function problemBox(error, retry) {
  const isRefused = error.status >= 400 && error.status < 429;
  return el(
    "div",
    { class: "notice error" },
    el("p", { text: error.message }),
    retry && !isRefused && el("button", { type: "button", text: "Try again", on: { click: retry } }),
  );
}

/** A bar of 0 to 1. The width is set by script, since the pages allow no style attribute. */
export function bar(fraction, className = "") {
  const fill = el("span", { class: "fill" });
  fill.style.width = `${Math.max(0, Math.min(1, fraction)) * 100}%`;
  return el("span", { class: `bar ${className}`, "aria-hidden": "true" }, fill);
}

/** Whether a key press belongs to a form field and not to the page; a box to be checked takes no text. */
export function isTyping(event) {
  return (
    event.ctrlKey || event.metaKey || event.altKey || event.isComposing || event.defaultPrevented ||
    (event.target instanceof HTMLElement && event.target.matches("input:not([type=checkbox], [type=radio]), textarea, select"))
  );
}

// A picture that cannot be had is said in its place, on every page.
document.addEventListener("error", ({ target }) => {
  if (target.matches?.(".tile img, .strip img")) target.replaceWith(el("span", { class: "no-picture", text: "no picture" }));
}, true);

/** Let "/" lead to the search box of the browse page, from any other page. */
export function searchOnSlash(address = () => "/") {
  document.addEventListener("keydown", (event) => {
    if (event.key !== "/" || isTyping(event)) return;
    event.preventDefault();
    location.assign(`${address()}#q`);
  });
}

/** A web address as a link if it is one, else as text: data may hold any scheme. */
export function webLink(address, text = address) {
  let url = null;
  try {
    url = new URL(address);
  } catch {
    return document.createTextNode(text);
  }
  if (url.protocol !== "https:" && url.protocol !== "http:") return document.createTextNode(text);
  return el("a", { href: url.href, rel: "noopener noreferrer external", target: "_blank", text });
}
