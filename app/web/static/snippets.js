// The same question for a terminal and for Python.

import { el } from "./dom.js";

// Between single quotes a shell takes everything but a single quote.
const shell = (text) => `'${text.replaceAll("'", "'\\''")}'`;

function curl(origin, task, name, caption) {
  const lines = [`curl -F image=@${shell(name)}`];
  if (task === "location" && caption) lines.push(`--form-string caption=${shell(caption)}`);
  lines.push(`${origin}/predict/${task}`);
  return lines.join(" \\\n  ");
}

function python(origin, task, name, caption) {
  const data = task === "location" && caption ? `, data={"caption": ${JSON.stringify(caption)}}` : "";
  return [
    "import httpx",
    "",
    `with open(${JSON.stringify(name)}, "rb") as image:`,
    `    answer = httpx.post("${origin}/predict/${task}", files={"image": image}${data})`,
    "answer.raise_for_status()",
    `print(answer.json()["label"])`,
  ].join("\n");
}

/** Both snippets with buttons that copy them. */
export function snippets(task, name, caption) {
  const texts = [["curl", curl], ["Python", python]].map(([title, make]) => [title, make(location.origin, task, name, caption)]);
  return el(
    "details",
    { class: "snippets" },
    el("summary", { class: "small", text: "Ask the same with curl or Python" }),
    texts.map(([title, text]) => {
      const button = el("button", { type: "button", text: `Copy as ${title}` });
      button.addEventListener("click", async () => {
        try {
          await navigator.clipboard.writeText(text);
          button.textContent = "Copied";
        } catch {
          button.textContent = "Select the text and copy it";
        }
      });
      return [el("pre", { class: "scroll", tabindex: "0", text }), button];
    }).flat(),
  );
}
