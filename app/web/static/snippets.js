// The request that was just sent, as a command and as a program.

import { at } from "./address.js";
import { copyButton } from "./copy.js";
import { el } from "./dom.js";

/** A text as one word of a POSIX shell. */
const shellWord = (text) => `'${text.replaceAll("'", "'\\''")}'`;

/** A file name inside curl's -F, where quotation marks keep commas and semicolons from having a meaning. */
const curlName = (name) => `"${name.replaceAll("\\", "\\\\").replaceAll('"', '\\"')}"`;

/** A text as a literal of Python, which reads all escapes of JSON. */
const pythonText = (text) => JSON.stringify(text);

function curlSnippet(origin, task, name, caption) {
  const parts = [`curl -F ${shellWord(`image=@${curlName(name)}`)}`];
  if (caption && task === "location") parts.push(`--form-string ${shellWord(`caption=${caption}`)}`);
  parts.push(shellWord(`${origin}/predict/${task}`));
  return parts.join(" \\\n  ");
}

function pythonSnippet(origin, task, name, caption) {
  const data = caption && task === "location" ? `, data={"caption": ${pythonText(caption)}}` : "";
  return [
    "import requests",
    "",
    `with open(${pythonText(name)}, "rb") as image:`,
    `    answer = requests.post(${pythonText(`${origin}/predict/${task}`)}, files={"image": image}${data}, timeout=60)`,
    "answer.raise_for_status()",
    'print(answer.json()["label"])',
  ].join("\n");
}

function block(title, text) {
  const code = el("code", { text });
  return el(
    "div",
    { class: "snippet-box" },
    el("div", { class: "row" }, el("h4", { class: "grow", text: title }), copyButton(`as ${title}`, text, code)),
    el("pre", { tabindex: 0, "aria-label": title }, code),
  );
}

/** The request of a task in both forms. */
export function snippetsView(task, name, caption) {
  return el(
    "details",
    { class: "snippets" },
    el("summary", { text: "Copy as curl or Python" }),
    block("curl", curlSnippet(location.origin + at(""), task, name, caption)),
    block("Python", pythonSnippet(location.origin + at(""), task, name, caption)),
  );
}
