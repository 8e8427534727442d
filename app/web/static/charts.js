// Small charts as SVG, made element by element.

const SVG = "http://www.w3.org/2000/svg";

function shape(tag, attributes, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, String(value));
  node.append(...children);
  return node;
}

/** A share with its interval on a line from 0 to 1. */
export function whisker(value, interval) {
  const at = (share) => 4 + 192 * share;
  const parts = [shape("line", { class: "track", x1: at(0), x2: at(1), y1: 10, y2: 10 })];
  if (interval) parts.push(shape("line", { class: "whisker", x1: at(interval[0]), x2: at(interval[1]), y1: 10, y2: 10 }));
  // The drawing is stretched to its cell: a line keeps its width, a circle would not stay round.
  parts.push(shape("line", { class: "tick", x1: at(value), x2: at(value), y1: 3, y2: 17, "vector-effect": "non-scaling-stroke" }));
  return shape("svg", { viewBox: "0 0 200 20", preserveAspectRatio: "none", "aria-hidden": "true" }, ...parts);
}

const BOX = { left: 34, right: 290, top: 10, bottom: 190 };

function frame(label, xText, yText, xEnds, yEnds, ...marks) {
  const text = (x, y, words, anchor = "middle") => shape("text", { x, y, "text-anchor": anchor }, words);
  return shape(
    "svg",
    { viewBox: "0 0 300 225", role: "img", "aria-label": label },
    shape("rect", { x: BOX.left, y: BOX.top, width: BOX.right - BOX.left, height: BOX.bottom - BOX.top, fill: "none", class: "track" }),
    text(BOX.left, 204, xEnds[0], "start"),
    text(BOX.right, 204, xEnds[1], "end"),
    text((BOX.left + BOX.right) / 2, 219, xText),
    text(BOX.left - 4, BOX.bottom, yEnds[0], "end"),
    text(BOX.left - 4, BOX.top + 9, yEnds[1], "end"),
    shape("text", { transform: "translate(12 100) rotate(-90)", "text-anchor": "middle" }, yText),
    ...marks,
  );
}

const place = (x, y) => [BOX.left + (BOX.right - BOX.left) * x, BOX.bottom - (BOX.bottom - BOX.top) * y];

/** Accuracy against confidence; on the diagonal the model is calibrated. */
export function reliability(bins) {
  const total = bins.reduce((sum, bin) => sum + bin.n, 0);
  const [[x1, y1], [x2, y2]] = [place(0, 0), place(1, 1)];
  const points = bins.map(({ confidence, accuracy, n }) => {
    const [cx, cy] = place(confidence, accuracy);
    return shape("circle", { class: "point", cx, cy, r: 2.5 + 7 * Math.sqrt(n / total) }, shape("title", {}, `${n} images: confidence ${confidence.toFixed(2)}, accuracy ${accuracy.toFixed(2)}`));
  });
  return frame("Reliability diagram", "confidence", "accuracy", ["0", "1"], ["0", "1"], shape("line", { class: "ideal", x1, y1, x2, y2 }), ...points);
}

/** Lines over the epochs: `series` are lists of numbers. */
export function curves(series, label) {
  const all = series.flat();
  const [low, high] = [Math.min(...all), Math.max(...all)];
  const length = Math.max(...series.map((values) => values.length));
  const lines = series.map((values, index) => {
    const points = values.map((value, step) => place(length > 1 ? step / (length - 1) : 0, high > low ? (value - low) / (high - low) : 0.5).join(",")).join(" ");
    return shape("polyline", { class: index ? "curve other" : "curve", points });
  });
  return frame(label, "epoch", "loss", ["1", String(length)], [low.toFixed(2), high.toFixed(2)], ...lines);
}

/** Accuracy of the most confident answers against coverage. */
export function riskCoverage(pairs) {
  const points = pairs.map(([coverage, accuracy]) => place(coverage, accuracy).join(",")).join(" ");
  return frame("Accuracy by coverage", "coverage (most confident first)", "accuracy", ["0", "1"], ["0", "1"], shape("polyline", { class: "curve", points }));
}
