// Asks the API. Every failure becomes a Problem whose message is a sentence that can be shown.

export class Problem extends Error {
  constructor(message, status = 0, body = {}, retryAfter = 0) {
    super(message);
    this.status = status;
    this.body = body;
    this.retryAfter = retryAfter;
  }
}

const UNREACHABLE = "The service cannot be reached. Check that it is running, then try again.";

async function ask(address, options) {
  let response;
  try {
    response = await fetch(address, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(UNREACHABLE);
  }
  if (response.ok) return response;
  throw await problemOf(response);
}

async function problemOf(response) {
  let body = {};
  try {
    body = await response.json();
  } catch {
    // Not JSON, so not from the service itself: the status alone must do.
  }
  const detail = typeof body.detail === "string" && body.detail ? body.detail : "";
  const fallback = response.status >= 500
    ? `The service has a fault (status ${response.status}). Try again in a moment.`
    : `The service refused the request (status ${response.status}).`;
  return new Problem(detail || fallback, response.status, body, Number(response.headers.get("Retry-After")) || 0);
}

/** The answer to a GET, as JSON. `params`: URLSearchParams or pairs. */
export async function getJson(path, params = [], options = {}) {
  const query = new URLSearchParams(params).toString();
  return read(await ask(query ? `${path}?${query}` : path, options), "json");
}

async function read(response, as) {
  try {
    return await response[as]();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem("The answer of the service was cut off. Try again.");
  }
}

/** What a POST of a form answers (`as`: json or blob), with its headers and the milliseconds of each stage. */
export async function postForm(path, form, { as = "json", ...options } = {}) {
  const started = performance.now();
  const response = await ask(path, { method: "POST", body: form, ...options });
  const answer = await read(response, as);
  const stages = [...(response.headers.get("Server-Timing") ?? "").matchAll(/([\w-]+);dur=([\d.]+)/g)];
  const timing = { total: performance.now() - started, stages: stages.map(([, name, ms]) => [name, Number(ms)]) };
  return { answer, timing, headers: response.headers };
}

/** The bytes at an address. */
export async function getBlob(path) {
  return read(await ask(path, {}), "blob");
}
