// Where a case stands in a result, and which cases stand beside it: a walk leads from case to case, each entered at its
// first image in the result.

import { at } from "./address.js";
import { getJson, load } from "./api.js";
import { caseOf, writeState } from "./state.js";

const STORED = "medpix-walk";
const PAGE = 100;
const MOST = 5000; // collections far larger than MedPix are not walked to their end

// Both views have the same walk.
const keyOf = (state) => writeState({ ...state, shown: 0, view: "cases", quiz: false });

/** Remember the cases that were seen in a result, so that the case page need not ask for them again. */
export function rememberWalk(state, images, done, total) {
  const cases = new Set();
  const covers = images.filter((image) => !cases.has(caseOf(image)) && cases.add(caseOf(image)));
  try {
    sessionStorage.setItem(STORED, JSON.stringify({ key: keyOf(state), covers, done, total }));
  } catch {
    // No room or no permission: the case page asks again.
  }
}

function recallWalk(state) {
  try {
    const walk = JSON.parse(sessionStorage.getItem(STORED) ?? "null");
    return walk?.key === keyOf(state) && Array.isArray(walk.covers) ? walk : null;
  } catch {
    return null;
  }
}

/**
 * Where a case stands in a result: index, total (null if not known), previous and next image or case, and whether the
 * result was listed from its start up to it (`isSeen`); null if it is not in the result.
 */
export async function place(state, uId) {
  const found = find(recallWalk(state), uId);
  if (found) return found;
  return state.q || state.sort || state.filters.length ? placeInResult(state, uId) : placeOfAll(uId);
}

const countCases = async (params) => (await getJson(at("/facets"), params)).cases;

/** The place among all cases by id, in requests whose number does not grow with it. */
async function placeOfAll(uId) {
  const ids = async (sort, bound) => {
    const params = { [bound]: uId, image_count__gte: 1, sort, fields: "u_id", limit: 2 };
    return (await getJson(at("/cases"), Object.entries(params))).items.map((item) => item.u_id);
  };
  const [[own, next], [, previous], before, total] = await Promise.all([
    ids("u_id", "u_id__gte"),
    ids("-u_id", "u_id__lte"),
    countCases([["u_id__lte", uId]]),
    countCases([]),
  ]);
  return own === uId ? { index: before - 1, total, previous: previous ?? null, next: next ?? null, isSeen: false } : null;
}

async function placeInResult(state, uId) {
  const { Result } = await load("result");
  const result = new Result(state);
  const covers = [];
  let index = -1;
  while (!result.done && covers.length < MOST && (index < 0 || index + 1 >= covers.length)) {
    covers.push(...(await result.nextCases(PAGE)).map((each) => each.cover.image));
    index = covers.findIndex((image) => caseOf(image) === uId);
  }
  const total = index < 0 || result.done ? null : await countCases(await result.query()).catch(() => null);
  rememberWalk(state, covers, result.done, total);
  return find({ covers, done: result.done, total }, uId);
}

function find(walk, uId) {
  const index = walk ? walk.covers.findIndex((image) => caseOf(image) === uId) : -1;
  if (index < 0 || (index + 1 >= walk.covers.length && !walk.done)) return null;
  const total = walk.total ?? (walk.done ? walk.covers.length : null);
  return { index, total, previous: walk.covers[index - 1] ?? null, next: walk.covers[index + 1] ?? null, isSeen: true };
}
