// Asks the API. Every failure becomes a Problem whose message is a sentence that can be shown.

/** What the service predicts of an image for a reader. */
export const TASKS = ["modality", "location"];

export class Problem extends Error {
  constructor(message, status = 0, body = {}, retryAfter = 0) {
    super(message);
    this.status = status;
    this.body = body;
    this.retryAfter = retryAfter;
  }
}

const UNREACHABLE = "The service cannot be reached. Check that it is running, then try again.";

/** A module of these pages that not every reader needs: fetched when it is asked for. */
export async function load(name) {
  try {
    return await import(`./${name}.js`);
  } catch {
    throw new Problem(UNREACHABLE);
  }
}

/** The response to a request, if it is a success. */
export async function ask(address, options) {
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
    ? `The service failed (status ${response.status}). Try again in a moment.`
    : `The service rejected the request (status ${response.status}).`;
  return new Problem(detail || fallback, response.status, body, Number(response.headers.get("Retry-After")) || 0);
}

/** The answer to a GET, as JSON. `params`: URLSearchParams or pairs. */
export async function getJson(path, params = [], options = {}) {
  const query = new URLSearchParams(params).toString();
  return read(await ask(query ? `${path}?${query}` : path, options), "json");
}

/** The body of a response. `as`: json or blob. */
export async function read(response, as) {
  try {
    return await response[as]();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem("The response of the service was incomplete. Try again.");
  }
}
