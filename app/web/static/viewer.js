// One large image: zoom with buttons, wheel or + and −, drag to move, full screen.

import { byId, el } from "./dom.js";

const STEP = 1.4;
const MAX = 8;

export class Viewer {
  constructor(box) {
    this.box = box;
    this.scale = 1;
    this.x = 0;
    this.y = 0;
    this.picture = el("img", { alt: "", draggable: "false" });
    box.replaceChildren(this.picture);
    this.picture.addEventListener("load", () => box.setAttribute("aria-busy", "false"));
    this.picture.addEventListener("error", () => this._fail());
    box.addEventListener("wheel", (event) => this._onWheel(event), { passive: false });
    box.addEventListener("pointerdown", (event) => this._onDown(event));
    byId("zoom-in").addEventListener("click", () => this.zoom(STEP));
    byId("zoom-out").addEventListener("click", () => this.zoom(1 / STEP));
    byId("zoom-reset").addEventListener("click", () => this.reset());
    byId("full").addEventListener("click", () => this.full());
    byId("full").hidden = !document.fullscreenEnabled;
  }

  show(image) {
    this.reset();
    this.box.querySelector(".notice")?.remove();
    this.box.setAttribute("aria-busy", "true");
    this.picture.hidden = false;
    this.picture.width = image.width;
    this.picture.height = image.height;
    this.picture.alt = image.caption ?? `${image.modality} image without a caption`;
    this.picture.src = image.links.file;
  }

  zoom(factor) {
    this.scale = Math.max(1, Math.min(MAX, this.scale * factor));
    if (this.scale === 1) [this.x, this.y] = [0, 0];
    this._draw();
  }

  reset() {
    [this.scale, this.x, this.y] = [1, 0, 0];
    this._draw();
  }

  full() {
    if (document.fullscreenElement) document.exitFullscreen();
    else this.box.requestFullscreen?.();
  }

  _draw() {
    this.picture.style.transform = `translate(${this.x}px, ${this.y}px) scale(${this.scale})`;
    this.box.classList.toggle("zoomed", this.scale > 1);
    byId("zoom-out").disabled = this.scale === 1;
    byId("zoom-in").disabled = this.scale === MAX;
  }

  _onWheel(event) {
    if (!event.ctrlKey && this.scale === 1 && event.deltaY > 0) return; // the page scrolls
    event.preventDefault();
    this.zoom(event.deltaY < 0 ? STEP : 1 / STEP);
  }

  _onDown(event) {
    if (this.scale === 1) return;
    event.preventDefault();
    const [fromX, fromY] = [event.clientX - this.x, event.clientY - this.y];
    const move = (next) => {
      [this.x, this.y] = [next.clientX - fromX, next.clientY - fromY];
      this._draw();
    };
    this.box.setPointerCapture(event.pointerId);
    this.box.addEventListener("pointermove", move);
    this.box.addEventListener("pointerup", () => this.box.removeEventListener("pointermove", move), { once: true });
  }

  _fail() {
    this.box.setAttribute("aria-busy", "false");
    this.picture.hidden = true;
    const text = "The image file could not be loaded. Check that the service is running, then reload the page.";
    this.box.append(el("p", { class: "notice error", text }));
  }
}
