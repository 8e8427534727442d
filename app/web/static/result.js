// What a state selects, page by page, in one order for the browse page and the case page: cases or images.
//
// Images are filtered by GET /images; a case is part of the result if one of its images is. A search, the fields that
// only cases have and an order by one of these are answered in cases; their ids then become a filter of the images,
// so that counts and exports are of exactly what is shown. A search of images by words ranks all images that pass the
// filters, so these alone select.

import { at } from "./address.js";
import { getJson } from "./api.js";
import { loadCatalogue, splitFilters } from "./catalogue.js";

const IMAGE_FIELDS = "image,u_id,modality,modality_detail,plane,location,caption,age,sex,width,height";
export const CASE_FIELDS = "u_id,title,modalities,location,image_count,age,sex";
const PAGE = 100;
// The API takes 20 conditions of 500 characters each: room for these cases, and for eight filters beside them.
const CONDITION_CHARS = 500;
export const MAX_CASES = 700;
const CASES_AT_ONCE = 24;
const MAX_OFFSET = 10_000; // of a search of images by words

/** Whether a state asks for images that fit its words by what they show. */
export const isByWords = ({ q, mode }) => Boolean(q) && mode === "images";

export class Result {
  constructor(state, { signal } = {}) {
    this.state = state;
    this.signal = signal;
    this.truncated = false;
    this.hits = new Map();
    this.about = {}; // what a search says of itself: matched, did_you_mean, mode
    this.isByWords = isByWords(state);
    this._isSearch = Boolean(state.q) && !this.isByWords;
    this.isByCase = this._isSearch && !state.sort;
    this._ids = null;
    this._position = 0;
    this._cursor = null;
    this._started = null;
    this._offsets = [];
    this._rest = null;
    this._seen = new Set(); // cases
    this._spare = []; // cases that came with the last page and were not asked for yet
    this._isOver = false;
  }

  /** Whether all of the result was handed out. */
  get done() {
    return this._isOver && !this._spare.length;
  }

  /** The next images, at least `size` if there are. */
  async nextImages(size) {
    return this._retryable(() => this._more(size));
  }

  /** The next cases, `size` if there are: `u_id`, `cover` (its first image in the result) and `hit`. */
  async nextCases(size) {
    return this._retryable(async () => {
      while (!this._isOver && this._spare.length < size) {
        for (const image of await this._more(PAGE)) {
          if (this._seen.has(image.u_id)) continue;
          this._seen.add(image.u_id);
          this._spare.push({ u_id: image.u_id, cover: image, hit: this.hits.get(image.u_id) ?? null });
        }
      }
      return this._spare.splice(0, size);
    });
  }

  /**
   * The parameters that select all images of the result, for /facets and /export; null if it is empty. `without`: names
   * of filters that are left out.
   */
  async query(without = []) {
    await this._start();
    // Filters of cases chose the ids, so without one of these the ids are others.
    if (this._ofCases.some(([name]) => without.includes(name))) {
      const filters = this.state.filters.filter(([name]) => !without.includes(name));
      return new Result({ ...this.state, filters, sort: "" }, { signal: this.signal }).query();
    }
    await this._allIds();
    if (this._ids?.length === 0) return null;
    const params = this._ofImages.filter(([name]) => !without.includes(name));
    // An order alone selects nothing.
    return this._isSelecting ? [...params, ...this.conditions(this._ids)] : params;
  }

  async _retryable(work) {
    await this._start();
    const before = [this._position, this._cursor, new Set(this._seen), [...this._spare]];
    try {
      return await work();
    } catch (error) {
      // Whoever asks again is given the same images, and none is left out.
      [this._position, this._cursor, this._seen, this._spare] = before;
      throw error;
    }
  }

  _more(size) {
    if (this.isByWords) return this._nextByWords(size);
    return this.isByCase ? this._nextByCase(size) : this._nextPage(size);
  }

  _start() {
    this._started ??= this._findCases();
    return this._started;
  }

  async _findCases() {
    const { ofImages, ofCases } = await splitFilters(this.state.filters);
    [this._ofImages, this._ofCases] = [ofImages, ofCases];
    this._isSelecting = this._isSearch || ofCases.length > 0;
    const isCaseOrder = !this.isByWords && (await this._hasCaseOrder());
    if (this._isSearch) await this._search(ofCases);
    else if (ofCases.length || isCaseOrder) this._ids = await this._listCases(ofCases, isCaseOrder ? this.state.sort : "");
    if (this._ids === null) return;
    if (isCaseOrder) await this._sortIds();
    // Two filters of one name would mean either of them; the reader means both.
    const chosen = ofImages.filter(([name]) => name === "u_id__in").flatMap(([, value]) => value.split(/[|,]/));
    if (chosen.length) {
      await this._allIds();
      this._ids = this._ids.filter((id) => chosen.includes(id));
      this._ofImages = ofImages.filter(([name]) => name !== "u_id__in");
      this._isSelecting = true;
    }
  }

  /** Whether the order is by a field that only cases have, such as the number of images. */
  async _hasCaseOrder() {
    if (!this.state.sort) return false;
    const { images, cases } = await loadCatalogue();
    const names = this.state.sort.split(",").map((name) => name.replace(/^-/, ""));
    const isCaseOrder = names.some((name) => cases.has(name) && !images.has(name));
    if (isCaseOrder) this.isByCase = true;
    return isCaseOrder;
  }

  async _sortIds() {
    await this._allIds();
    if (!this.state.q) return; // they came in this order
    const found = new Set(this._ids);
    this._ids = (await this._listCases([], this.state.sort)).filter((id) => found.has(id));
  }

  async _search(ofCases) {
    const mode = this.state.mode ? [["mode", this.state.mode]] : [];
    this._ask = (offset) => {
      const params = [["q", this.state.q], ...mode, ...ofCases, ["fields", CASE_FIELDS], ["limit", PAGE], ["offset", offset]];
      return getJson(at("/search"), params, { signal: this.signal });
    };
    const first = await this._ask(0);
    const { items, ...about } = first;
    this.about = about;
    this._ids = [];
    this._take(first);
    this.truncated = first.total > MAX_CASES;
    for (let offset = PAGE; offset < Math.min(first.total, MAX_CASES); offset += PAGE) this._offsets.push(offset);
    // Whoever waits for the rest hears of a failure; nobody waiting is no failure.
    const rest = this._allIds();
    rest.catch(() => {});
    if (!this.isByCase) await rest;
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

  async _listCases(ofCases, sort = "") {
    const ids = [];
    let cursor = null;
    do {
      const params = [...ofCases, ["fields", "u_id"], ["limit", PAGE]];
      if (sort) params.push(["sort", sort]);
      if (cursor) params.push(["cursor", cursor]);
      const page = await getJson(at("/cases"), params, { signal: this.signal });
      ids.push(...page.items.map((item) => item.u_id));
      cursor = page.next_cursor;
    } while (cursor && ids.length < MAX_CASES);
    this.truncated = cursor !== null;
    return ids.slice(0, MAX_CASES);
  }

  /** Parameters that select these cases. */
  conditions(ids) {
    const lists = [];
    for (const id of ids ?? []) {
      const last = lists.length - 1;
      if (last >= 0 && lists[last].length + id.length < CONDITION_CHARS) lists[last] += `|${id}`;
      else lists.push(id);
    }
    return lists.map((list) => ["u_id__in", list]);
  }

  async _images(params, size, cursor) {
    const asked = [...params, ["fields", IMAGE_FIELDS], ["limit", Math.min(size, PAGE)]];
    if (cursor) asked.push(["cursor", cursor]);
    return getJson(at("/images"), asked, { signal: this.signal });
  }

  async _nextPage(size) {
    const images = [];
    if (this._ids?.length === 0) this._isOver = true;
    while (!this._isOver && images.length < size) {
      const params = [...this._ofImages, ...this.conditions(this._ids)];
      if (this.state.sort) params.push(["sort", this.state.sort]);
      const page = await this._images(params, size - images.length, this._cursor);
      images.push(...page.items);
      this._cursor = page.next_cursor;
      this._isOver = this._cursor === null;
    }
    return images;
  }

  async _nextByWords(size) {
    const images = [];
    if (this._ids?.length === 0) this._isOver = true;
    while (!this._isOver && images.length < size) {
      const limit = Math.min(size - images.length, PAGE);
      const params = [["q", this.state.q], ...this._ofImages, ...this.conditions(this._ids), ["limit", limit], ["offset", this._position]];
      const page = await getJson(at("/search/images"), params, { signal: this.signal });
      this.about = { model: page.model.name };
      images.push(...page.items.map((item) => item.image));
      this._position += limit;
      this._isOver = this._position >= Math.min(page.total, MAX_OFFSET);
    }
    return images;
  }

  async _nextByCase(size) {
    const images = [];
    while (!this._isOver && images.length < size) {
      if (this._position + CASES_AT_ONCE > this._ids.length) await this._allIds();
      const ids = this._ids.slice(this._position, this._position + CASES_AT_ONCE);
      this._position += ids.length;
      if (ids.length) {
        const found = await this._imagesOf(ids);
        images.push(...ids.flatMap((id) => found.filter((image) => image.u_id === id)));
      }
      if (this._position < this._ids.length) continue;
      await this._allIds();
      this._isOver = this._position >= this._ids.length;
    }
    return images;
  }

  async _imagesOf(ids) {
    const images = [];
    let cursor = null;
    do {
      const page = await this._images([...this._ofImages, ...this.conditions(ids)], PAGE, cursor);
      images.push(...page.items);
      cursor = page.next_cursor;
    } while (cursor);
    return images;
  }
}
