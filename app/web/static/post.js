// Sends forms, and fetches bytes.

import { ask, read } from "./api.js";

const STAGES = { decode: "decoding", queue: "queue", run: "model", cache: "cache", explain: "explanation" };

/** What a POST of a form answers (`as`: json or blob), with its headers and how long it took. */
export async function postForm(path, form, { as = "json", ...options } = {}) {
  const started = performance.now();
  const response = await ask(path, { method: "POST", body: form, ...options });
  const answer = await read(response, as);
  const ms = Math.round(performance.now() - started);
  const parts = [...(response.headers.get("Server-Timing") ?? "").matchAll(/([\w-]+);dur=([\d.]+)/g)];
  const stages = parts.map(([, stage, took]) => `${STAGES[stage] ?? stage} ${Number(took)} ms`).join(", ");
  const timing = { ms, words: `${ms} ms in total${stages ? `: ${stages}` : ""}` };
  return { answer, timing, headers: response.headers };
}

/** The bytes at an address. */
export async function getBlob(path) {
  return read(await ask(path, {}), "blob");
}
