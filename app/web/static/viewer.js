// The image viewer: one image of a stack, or two beside each other under one zoom.
//
// Zoom by buttons, keys, double click, pinch and Ctrl with the wheel; the wheel and a swipe go through the stack; a drag
// moves an image that is zoomed, and changes brightness and contrast of one that is not. Zoom, position, brightness
// and contrast stay from image to image of a case.

import { byId } from "./dom.js";

const MOST = 10;
const STEP = 1.4;
const WHEEL_PX = 60; // for a step through the stack
const SWIPE_PX = 40;
const TONE_PER_PX = 0.5; // percent
const LIMITS = { brightness: [20, 300], contrast: [20, 400] };
// Who turns the wheel on at the end of a stack does not mean the page, at least not at once.
const SAME_TURN_MS = 400;
// Some browsers leave full screen by themselves and hand the same press of Esc on to the page.
const SAME_PRESS_MS = 300;

const between = (value, [low, high]) => Math.max(low, Math.min(high, value));

/** One image of the viewer with what is said of it. */
class Pane {
  constructor(stage) {
    this.stage = stage;
    this.image = stage.querySelector("img");
    this._problem = stage.querySelector(".notice");
    this._label = stage.querySelector(".pane-label");
    this.image.addEventListener("load", () => this._loaded(true));
    this.image.addEventListener("error", () => this._loaded(false));
  }

  show({ address, alt, width, height, label }) {
    this._label.textContent = label;
    this.image.alt = alt;
    if (this.image.getAttribute("src") === address) return;
    this.stage.setAttribute("aria-busy", "true");
    this._problem.hidden = true;
    this.image.hidden = false;
    // The size is known before the file: nothing moves when it comes.
    this.image.width = width;
    this.image.height = height;
    this.image.src = address;
  }

  _loaded(isHere) {
    this.stage.setAttribute("aria-busy", "false");
    this.image.hidden = !isHere;
    this._problem.hidden = isHere;
  }
}

export class Viewer {
  /** `onStep(delta, pane)` goes on in the stack of a pane and returns whether it could; `onPane` hears of the active one. */
  constructor(root, { onStep, onPane }) {
    [this.root, this.onStep, this.onPane] = [root, onStep, onPane];
    this.panes = ["stage", "stage-2"].map((id) => new Pane(byId(id)));
    this.active = 0;
    this._level = byId("zoom-level");
    this._pointers = new Map();
    this._left = -Infinity; // when full screen was left
    [this._wheel, this._turned, this._swiped] = [0, -Infinity, 0];
    byId("zoom-in").addEventListener("click", () => this.zoom(STEP));
    byId("zoom-out").addEventListener("click", () => this.zoom(1 / STEP));
    this._level.addEventListener("click", () => this.fit());
    byId("fullscreen").addEventListener("click", () => this.toggleFull());
    byId("adjust").addEventListener("click", () => this.toggleAdjust());
    byId("invert").addEventListener("click", () => this.invert());
    byId("reset").addEventListener("click", () => this.reset());
    for (const name of Object.keys(LIMITS)) {
      const slider = byId(name);
      [slider.min, slider.max] = LIMITS[name];
      slider.addEventListener("input", () => this.setTone({ [name]: Number(slider.value) }));
    }
    this.panes.forEach(({ stage }, index) => {
      stage.addEventListener("dblclick", (event) => (this.scale > 1 ? this.fit() : this.zoom(3, event, index)));
      stage.addEventListener("wheel", (event) => this._onWheel(event, index), { passive: false });
      for (const type of ["pointerdown", "pointermove", "pointerup", "pointercancel"]) {
        stage.addEventListener(type, (event) => this._onPointer(event, index));
      }
    });
    document.addEventListener("fullscreenchange", () => this._showFull(document.fullscreenElement === this.root));
    this.reset();
  }

  get isFull() {
    return this.root.classList.contains("full");
  }

  get isComparing() {
    return !this.panes[1].stage.hidden;
  }

  /** Show an image: `address`, `alt`, `width`, `height` and a `label` for the corner. */
  show(image, pane = 0) {
    if (pane === 0) this.root.style.setProperty("--shape", `${image.width} / ${image.height}`);
    this.panes[pane].show(image);
  }

  /** Everything as at first. */
  reset() {
    this.fit();
    this.setTone({ brightness: 100, contrast: 100, inverted: false });
  }

  fit() {
    [this.scale, this.x, this.y] = [1, 0, 0];
    this._draw();
  }

  /** Zoom by a factor, around a place on the screen or the middle. */
  zoom(factor, around = null, pane = 0) {
    const box = this.panes[pane].stage.getBoundingClientRect();
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

  /** Change brightness or contrast, in percent of the image as it is, or invert it. */
  setTone(change) {
    this.tone = { ...this.tone, ...change };
    for (const [name, limits] of Object.entries(LIMITS)) {
      this.tone[name] = Math.round(between(this.tone[name], limits));
      byId(name).value = this.tone[name];
      byId(`${name}-value`).textContent = `${this.tone[name]}%`;
    }
    const { brightness, contrast, inverted } = this.tone;
    byId("invert").setAttribute("aria-pressed", String(inverted));
    const isPlain = brightness === 100 && contrast === 100 && !inverted;
    const filter = isPlain ? "" : `${inverted ? "invert(1) " : ""}brightness(${brightness}%) contrast(${contrast}%)`;
    for (const { image } of this.panes) image.style.filter = filter;
    byId("adjust").classList.toggle("changed", !isPlain);
  }

  invert() {
    this.setTone({ inverted: !this.tone.inverted });
  }

  toggleAdjust() {
    const isOpen = byId("adjust").getAttribute("aria-expanded") !== "true";
    byId("adjust").setAttribute("aria-expanded", String(isOpen));
    byId("tone").hidden = !isOpen;
  }

  /** Show the second pane, or one alone again. */
  compare(isOn) {
    this.panes[1].stage.hidden = !isOn;
    this.root.classList.toggle("comparing", isOn);
    byId("compare").setAttribute("aria-pressed", String(isOn));
    this._activate(isOn ? 1 : 0);
    this.fit();
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
    const { key } = event;
    if (key === "f") this.toggleFull();
    else if (key === "+" || key === "=") this.zoom(STEP);
    else if (key === "-") this.zoom(1 / STEP);
    else if (key === "0") this.fit();
    else if (key === "i") this.invert();
    else if (key === "r") this.reset();
    else if (key === "a") this.toggleAdjust();
    else if (event.shiftKey && key in moves) this.pan(...moves[key]);
    else if (key === "ArrowUp" || key === "ArrowDown") this.onStep(key === "ArrowDown" ? 1 : -1, this.active);
    else if (key === "Escape" && this.isFull) this.toggleFull();
    else if (key === "Escape" && event.timeStamp - this._left < SAME_PRESS_MS) return true;
    else if (key === "Escape" && this.scale > 1) this.fit();
    else return false;
    return true;
  }

  _showFull(isFull) {
    if (!isFull) this._left = performance.now();
    this.root.classList.toggle("full", isFull);
    byId("fullscreen").setAttribute("aria-pressed", String(isFull));
    this.fit();
  }

  _activate(pane) {
    this.active = pane;
    this.panes.forEach(({ stage }, index) => stage.classList.toggle("active", this.isComparing && index === pane));
    this.onPane(pane);
  }

  _draw() {
    const { stage } = this.panes[0];
    // Not further than half of the image over each edge.
    const [limitX, limitY] = [stage.clientWidth, stage.clientHeight].map((side) => (side * (this.scale - 1)) / 2);
    this.x = between(this.x, [-limitX, limitX]);
    this.y = between(this.y, [-limitY, limitY]);
    for (const pane of this.panes) {
      pane.image.style.transform = `translate(${this.x}px, ${this.y}px) scale(${this.scale})`;
      pane.stage.classList.toggle("zoomed", this.scale > 1);
    }
    this._level.textContent = this.scale === 1 ? "Fit" : `${Math.round(this.scale * 100)}%`;
    byId("zoom-out").disabled = this.scale === 1;
    byId("zoom-in").disabled = this.scale === MOST;
  }

  _onWheel(event, pane) {
    if (event.ctrlKey || event.metaKey) {
      event.preventDefault();
      this.zoom(Math.exp(-event.deltaY / 400), event, pane);
      return;
    }
    const sign = Math.sign(event.deltaY);
    if (!sign || event.shiftKey) return;
    const isFree = event.timeStamp - this._turned > SAME_TURN_MS;
    // At either end of the stack the page goes on.
    if (!this.isFull && isFree && !this.onStep(sign, pane, { isTry: true })) return;
    event.preventDefault();
    if (sign !== Math.sign(this._wheel)) this._wheel = 0;
    this._wheel += event.deltaMode ? sign * WHEEL_PX : event.deltaY;
    if (Math.abs(this._wheel) < WHEEL_PX) return;
    this._wheel = 0;
    if (this.isComparing && this.active !== pane) this._activate(pane);
    if (this.onStep(sign, pane)) this._turned = event.timeStamp;
  }

  _onPointer(event, pane) {
    const { stage } = this.panes[pane];
    if (event.type === "pointerdown") {
      if (event.button) return;
      if (this.isComparing && this.active !== pane) this._activate(pane);
      this._pointers.set(event.pointerId, event);
      this._swiped = 0;
      if (event.pointerType !== "touch" || this.scale > 1) stage.setPointerCapture(event.pointerId);
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
    const [x, y] = [event.clientX - before.clientX, event.clientY - before.clientY];
    const isAdjusting = byId("adjust").getAttribute("aria-expanded") === "true";
    if (others.length) this._pinch(before, event, others[0], pane);
    else if (this.scale > 1 && !isAdjusting) this.pan(x, y);
    else if (event.pointerType !== "touch" || isAdjusting) this._drag(x, y);
    else this._swipe(x, pane);
  }

  /** To the right more contrast, up brighter. */
  _drag(x, y) {
    const { brightness, contrast } = this.tone;
    // Parts of a percent add up, although the sliders show none.
    this._rest = { x: (this._rest?.x ?? 0) + x * TONE_PER_PX, y: (this._rest?.y ?? 0) - y * TONE_PER_PX };
    const [dx, dy] = [Math.trunc(this._rest.x), Math.trunc(this._rest.y)];
    if (!dx && !dy) return;
    this._rest = { x: this._rest.x - dx, y: this._rest.y - dy };
    this.setTone({ brightness: brightness + dy, contrast: contrast + dx });
  }

  _swipe(x, pane) {
    this._swiped += x;
    if (Math.abs(this._swiped) < SWIPE_PX) return;
    this.onStep(this._swiped < 0 ? 1 : -1, pane);
    this._swiped = 0;
  }

  _pinch(before, now, other, pane) {
    const distance = (one) => Math.hypot(one.clientX - other.clientX, one.clientY - other.clientY);
    const middle = { clientX: (now.clientX + other.clientX) / 2, clientY: (now.clientY + other.clientY) / 2 };
    if (distance(before) > 0) this.zoom(distance(now) / distance(before), middle, pane);
  }
}
