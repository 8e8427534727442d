// The image viewer: zoom by buttons, keys, double click, pinch and Ctrl with the wheel; drag to move; full screen.

import { byId } from "./dom.js";

const MOST = 10;
const STEP = 1.4;
// Some browsers leave full screen by themselves and hand the same press of Esc on to the page.
const SAME_PRESS_MS = 300;

export class Viewer {
  constructor(root) {
    this.root = root;
    [this.stage, this.image] = [byId("stage"), byId("picture")];
    this._level = byId("zoom-level");
    this._pointers = new Map();
    this._left = -Infinity; // when full screen was left
    this._reset();
    byId("zoom-in").addEventListener("click", () => this.zoom(STEP));
    byId("zoom-out").addEventListener("click", () => this.zoom(1 / STEP));
    this._level.addEventListener("click", () => this.fit());
    byId("fullscreen").addEventListener("click", () => this.toggleFull());
    this.stage.addEventListener("dblclick", (event) => (this.scale > 1 ? this.fit() : this.zoom(3, event)));
    this.stage.addEventListener("wheel", (event) => this._onWheel(event), { passive: false });
    for (const type of ["pointerdown", "pointermove", "pointerup", "pointercancel"]) {
      this.stage.addEventListener(type, (event) => this._onPointer(event));
    }
    document.addEventListener("fullscreenchange", () => this._showFull(document.fullscreenElement === this.root));
    this.image.addEventListener("load", () => this._loaded(true));
    this.image.addEventListener("error", () => this._loaded(false));
  }

  get isFull() {
    return this.root.classList.contains("full");
  }

  show(address, alt, width, height) {
    if (this.image.getAttribute("src") === address) return;
    this.fit();
    this.stage.setAttribute("aria-busy", "true");
    byId("picture-problem").hidden = true;
    this.image.hidden = false;
    // The size is known before the file: nothing moves when it comes.
    this.image.width = width;
    this.image.height = height;
    this.image.alt = alt;
    this.image.src = address;
  }

  fit() {
    this._reset();
    this._draw();
  }

  /** Zoom by a factor, around a place on the screen or the middle. */
  zoom(factor, around = null) {
    const box = this.stage.getBoundingClientRect();
    const [x, y] = around
      ? [around.clientX - box.left - box.width / 2, around.clientY - box.top - box.height / 2]
      : [0, 0];
    const scale = Math.max(1, Math.min(MOST, this.scale * factor));
    const change = scale / this.scale;
    this.scale = scale;
    this.x = x - (x - this.x) * change;
    this.y = y - (y - this.y) * change;
    this._draw();
  }

  pan(x, y) {
    this.x += x;
    this.y += y;
    this._draw();
  }

  async toggleFull() {
    if (this.isFull) {
      if (!document.fullscreenElement) this._showFull(false);
      else await document.exitFullscreen().catch(() => {}); // the browser has left it meanwhile
      return;
    }
    try {
      await this.root.requestFullscreen();
    } catch {
      // Not allowed or not known here (iPhones): filling the window is the next best.
      this._showFull(true);
    }
  }

  /** Take a key of the viewer; whether it was one. */
  onKey(event) {
    const moves = { ArrowLeft: [60, 0], ArrowRight: [-60, 0], ArrowUp: [0, 60], ArrowDown: [0, -60] };
    if (event.key === "f") this.toggleFull();
    else if (event.key === "+" || event.key === "=") this.zoom(STEP);
    else if (event.key === "-") this.zoom(1 / STEP);
    else if (event.key === "0") this.fit();
    else if (event.shiftKey && event.key in moves) this.pan(...moves[event.key]);
    else if (event.key === "Escape" && this.isFull) this.toggleFull();
    else if (event.key === "Escape" && event.timeStamp - this._left < SAME_PRESS_MS) return true;
    else if (event.key === "Escape" && this.scale > 1) this.fit();
    else return false;
    return true;
  }

  _reset() {
    [this.scale, this.x, this.y] = [1, 0, 0];
  }

  _loaded(isHere) {
    this.stage.setAttribute("aria-busy", "false");
    this.image.hidden = !isHere;
    byId("picture-problem").hidden = isHere;
  }

  _showFull(isFull) {
    if (!isFull) this._left = performance.now();
    this.root.classList.toggle("full", isFull);
    byId("fullscreen").setAttribute("aria-pressed", String(isFull));
    this.fit();
  }

  _draw() {
    // Not further than half of the picture over each edge.
    const [limitX, limitY] = [this.stage.clientWidth, this.stage.clientHeight].map((side) => (side * (this.scale - 1)) / 2);
    this.x = Math.max(-limitX, Math.min(limitX, this.x));
    this.y = Math.max(-limitY, Math.min(limitY, this.y));
    this.image.style.transform = `translate(${this.x}px, ${this.y}px) scale(${this.scale})`;
    this.stage.classList.toggle("zoomed", this.scale > 1);
    this._level.textContent = this.scale === 1 ? "Fit" : `${Math.round(this.scale * 100)}%`;
    byId("zoom-out").disabled = this.scale === 1;
    byId("zoom-in").disabled = this.scale === MOST;
  }

  _onWheel(event) {
    // The plain wheel belongs to the page, as long as there is a page to be seen.
    if (!event.ctrlKey && !event.metaKey && !this.isFull) return;
    event.preventDefault();
    this.zoom(Math.exp(-event.deltaY / 400), event);
  }

  _onPointer(event) {
    if (event.type === "pointerdown") {
      if (event.button) return;
      this._pointers.set(event.pointerId, event);
      if (this.scale > 1) this.stage.setPointerCapture(event.pointerId);
      return;
    }
    const before = this._pointers.get(event.pointerId);
    if (!before) return;
    if (event.type !== "pointermove") {
      this._pointers.delete(event.pointerId);
      return;
    }
    const others = [...this._pointers.values()].filter((other) => other.pointerId !== event.pointerId);
    this._pointers.set(event.pointerId, event);
    if (others.length) this._pinch(before, event, others[0]);
    else if (this.scale > 1) this.pan(event.clientX - before.clientX, event.clientY - before.clientY);
  }

  _pinch(before, now, other) {
    const distance = (one) => Math.hypot(one.clientX - other.clientX, one.clientY - other.clientY);
    const middle = { clientX: (now.clientX + other.clientX) / 2, clientY: (now.clientY + other.clientY) / 2 };
    if (distance(before) > 0) this.zoom(distance(now) / distance(before), middle);
  }
}
