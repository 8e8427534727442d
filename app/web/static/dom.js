// Makes elements. Data only ever become text or checked attributes, never markup.
import { at } from "./address.js";


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
  const words = name.replaceAll("_", " ").replaceAll(".", " ").replace("u id", "case id").replace(/acr|url|sha/, (word) => word.toUpperCase());
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

/** Whether a key press belongs to a form field or to an open dialog, and not to the page. */
export function isTyping(event) {
  const { target, key } = event;
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing || event.defaultPrevented) return true;
  if (document.querySelector("dialog[open]")) return true;
  if (!(target instanceof HTMLElement)) return false;
  if (target.matches("textarea, input:not([type=checkbox], [type=radio], [type=range])")) return true;
  // A select jumps to the entry that begins with a letter, but has no use for these two.
  if (target.matches("select")) return key !== "/" && key !== "?";
  return target.matches("input:is([type=radio], [type=range])") && /^(Arrow|Page|Home|End)/.test(key);
}

// Thumbnails: a frame shows that its image is loading, and says so where there is none.
document.addEventListener("load", ({ target }) => target.closest?.(".loading")?.classList.remove("loading"), true);
document.addEventListener("error", ({ target }) => {
  if (!target.matches?.(".tile img, .strip img")) return;
  target.closest(".loading")?.classList.remove("loading");
  target.replaceWith(el("span", { class: "no-image", text: "no image" }));
}, true);

/** The thumbnail of an image in a square frame. `size`: width and height of the image, where they are known. */
export function thumbnail(image, { width = 256, isLazy = true, size = null } = {}) {
  const scale = size ? Math.min(1, width / Math.max(size.width, size.height)) : 1;
  const picture = el("img", {
    src: at(`/images/${encodeURIComponent(image)}/thumbnail?width=${width}`),
    width: size ? Math.max(1, Math.round(size.width * scale)) : width,
    height: size ? Math.max(1, Math.round(size.height * scale)) : width,
    alt: "",
    loading: isLazy ? "lazy" : "eager",
    decoding: "async",
  });
  return el("span", { class: "frame loading" }, picture);
}

/** Call `then` for a plain click on a link; with a key held the browser opens the address elsewhere. */
export function onPlainClick(link, then) {
  link.addEventListener("click", (event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return;
    event.preventDefault();
    then(event);
  });
  return link;
}
