// The images that a state selects, page by page, in one order for the browse page and the case page.
//
// Images are filtered by GET /images. A search and the fields that only cases have are answered in cases;
// their ids then become a filter of the images, so that counts and exports are of exactly what is shown.

import { getJson } from "./api.js";
import { splitFilters } from "./catalogue.js";
import { writeState } from "./state.js";

const TILE_FIELDS = "image,u_id,modality,modality_detail,plane,location,caption,width,height,quality_flags";
const PAGE = 100;
// The API takes 20 conditions of 500 characters each: room for these cases, and for eight filters beside them.
const CONDITION_CHARS = 500;
export const MAX_CASES = 700;
const CASES_AT_ONCE = 12;
const STORED_WALKS = "medpix-walk";

export class Result {
  constructor(state, { fields = TILE_FIELDS, signal } = {}) {
    this.state = state;
    this.fields = fields;
    this.signal = signal;
    this.done = false;
    this.truncated = false;
    this.total = null; // null where the API does not count to the end
    this.hits = new Map();
    this._ids = null;
    this._position = 0;
    this._cursor = null;
    this._started = null;
    this._offsets = [];
    this._rest = null;
  }

  /** Cases in the order of their score stand in groups; an order of images knows no groups. */
  get isRanked() {
    return Boolean(this.state.q) && !this.state.sort;
  }

  /** The next images: groups of a hit (null outside of a search) and its images. At least `size` if there are. */
  async next(size) {
    await this._start();
    const [position, cursor] = [this._position, this._cursor];
    try {
      return this.isRanked ? await this._nextRanked(size) : [{ hit: null, images: await this._nextPage(size) }];
    } catch (error) {
      // Whoever asks again is given the same images, and none is left out.
      [this._position, this._cursor] = [position, cursor];
      throw error;
    }
  }

  /** The parameters that select all images of the result, for /facets and /export; null if it is empty. */
  async query(without = []) {
    await this._start();
    await this._allIds();
    if (this._ids?.length === 0) return null;
    const params = this._ofImages.filter(([name]) => !without.includes(name));
    return [...params, ...this._idConditions(this._ids)];
  }

  _start() {
    this._started ??= this._findCases();
    return this._started;
  }

  async _findCases() {
    const { ofImages, ofCases } = await splitFilters(this.state.filters);
    this._ofImages = ofImages;
    if (this.state.q) await this._search(ofCases);
    else if (ofCases.length) this._ids = await this._listCases(ofCases);
    if (this._ids === null) return;
    // Two filters of one name would mean either of them; the reader means both.
    const chosen = ofImages.filter(([name]) => name === "u_id__in").flatMap(([, value]) => value.split(/[|,]/));
    if (chosen.length) {
      await this._allIds();
      this._ids = this._ids.filter((id) => chosen.includes(id));
      this._ofImages = ofImages.filter(([name]) => name !== "u_id__in");
    }
  }

  async _search(ofCases) {
    this._ask = (offset) => {
      const params = [["q", this.state.q], ...ofCases, ["fields", "u_id,title"], ["limit", PAGE], ["offset", offset]];
      return getJson("/search", params, { signal: this.signal });
    };
    const first = await this._ask(0);
    this._ids = [];
    this._take(first);
    this.truncated = first.total > MAX_CASES;
    for (let offset = PAGE; offset < Math.min(first.total, MAX_CASES); offset += PAGE) this._offsets.push(offset);
    // Whoever waits for the rest hears of a failure; nobody waiting is no failure.
    const rest = this._allIds();
    rest.catch(() => {});
    if (!this.isRanked) await rest;
  }

  _take({ items }) {
    for (const hit of items) {
      this.hits.set(hit.case.u_id, hit);
      this._ids.push(hit.case.u_id);
    }
  }

  /** The ids behind the first page of a search; after a failure the next call asks again. */
  _allIds() {
    this._rest ??= Promise.all(this._offsets.map((offset) => this._ask(offset))).then(
      (pages) => pages.forEach((page) => this._take(page)),
      (error) => {
        this._rest = null;
        throw error;
      },
    );
    return this._rest;
  }

  async _listCases(ofCases) {
    const ids = [];
    let cursor = null;
    do {
      const params = [...ofCases, ["fields", "u_id"], ["limit", PAGE]];
      if (cursor) params.push(["cursor", cursor]);
      const page = await getJson("/cases", params, { signal: this.signal });
      ids.push(...page.items.map((item) => item.u_id));
      cursor = page.next_cursor;
    } while (cursor && ids.length < MAX_CASES);
    this.truncated = cursor !== null;
    return ids.slice(0, MAX_CASES);
  }

  _idConditions(ids) {
    const lists = [];
    for (const id of ids ?? []) {
      const last = lists.length - 1;
      if (last >= 0 && lists[last].length + id.length < CONDITION_CHARS) lists[last] += `|${id}`;
      else lists.push(id);
    }
    return lists.map((list) => ["u_id__in", list]);
  }

  async _images(params, size, cursor) {
    const asked = [...params, ["fields", this.fields], ["limit", Math.min(size, PAGE)]];
    if (cursor) asked.push(["cursor", cursor]);
    return getJson("/images", asked, { signal: this.signal });
  }

  async _nextPage(size) {
    const images = [];
    if (this._ids?.length === 0) {
      this.total = 0;
      this.done = true;
    }
    while (!this.done && images.length < size) {
      const params = [...this._ofImages, ...this._idConditions(this._ids)];
      if (this.state.sort) params.push(["sort", this.state.sort]);
      const page = await this._images(params, size - images.length, this._cursor);
      images.push(...page.items);
      this.total = page.total_is_exact ? page.total : this.total;
      this._cursor = page.next_cursor;
      this.done = this._cursor === null;
    }
    return images;
  }

  async _nextRanked(size) {
    const groups = [];
    let count = 0;
    while (!this.done && count < size) {
      if (this._position >= this._ids.length) await this._allIds();
      const ids = this._ids.slice(this._position, this._position + CASES_AT_ONCE);
      this._position += ids.length;
      if (!ids.length) {
        this.done = true;
        break;
      }
      const images = await this._imagesOf(ids);
      for (const id of ids) {
        const own = images.filter((image) => image.u_id === id);
        if (own.length) groups.push({ hit: this.hits.get(id), images: own });
      }
      count += images.length;
    }
    return groups;
  }

  async _imagesOf(ids) {
    const images = [];
    let cursor = null;
    do {
      const page = await this._images([...this._ofImages, ...this._idConditions(ids)], PAGE, cursor);
      images.push(...page.items);
      cursor = page.next_cursor;
    } while (cursor);
    return images;
  }
}

/** Remember the images that were seen in a result, so that the case page need not ask for them again. */
export function rememberWalk(state, images, done, total) {
  const walk = { query: writeState({ ...state, shown: 0 }), images, done, total };
  try {
    sessionStorage.setItem(STORED_WALKS, JSON.stringify(walk));
  } catch {
    // No room or no permission: the case page walks by itself.
  }
}

function recallWalk(state) {
  try {
    const walk = JSON.parse(sessionStorage.getItem(STORED_WALKS) ?? "null");
    return walk?.query === writeState({ ...state, shown: 0 }) && Array.isArray(walk.images) ? walk : null;
  } catch {
    return null;
  }
}

/** Where an image stands in a result: index, total (null if not known), previous and next; null if it is not in it. */
export async function place(state, image) {
  const found = find(recallWalk(state), image);
  if (found) return found;
  const result = new Result(state, { fields: "image,u_id" });
  const images = [];
  let index = -1;
  // Collections far larger than MedPix are not walked to their end.
  while (!result.done && images.length < 5000 && (index < 0 || index + 1 >= images.length)) {
    for (const group of await result.next(PAGE)) images.push(...group.images.map((item) => item.image));
    index = images.indexOf(image);
  }
  rememberWalk(state, images, result.done, result.total);
  return find({ images, done: result.done, total: result.total }, image);
}

function find(walk, image) {
  const index = walk ? walk.images.indexOf(image) : -1;
  if (index < 0 || (index + 1 >= walk.images.length && !walk.done)) return null;
  const total = walk.total ?? (walk.done ? walk.images.length : null);
  return { index, total, previous: walk.images[index - 1] ?? null, next: walk.images[index + 1] ?? null };
}
