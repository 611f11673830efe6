// What the explorer computes and draws: numbers in, elements out. No state, no controls.

const SVG = "http://www.w3.org/2000/svg";

/** An element with attributes and children; an attribute that is null or false is left out. */
function h(tag, attributes = {}, ...children) {
  const svg = ["svg", "path", "line", "rect", "title"].includes(tag);
  const element = svg ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

function bytes(text) {
  return Uint8Array.from(atob(text), (character) => character.charCodeAt(0)).buffer;
}

/** Runs with typed arrays in place of base64, and where each layer's kernels start. */
function unpack(data) {
  const networks = data.networks.map((rows) => {
    let start = 0;
    const layers = rows.map(([name, kernels, shape, kind, block], index) => {
      const layer = { name, kernels, shape, kind, block, index, start };
      start += kernels;
      return layer;
    });
    return { layers, kernels: start };
  });
  const runs = data.runs.map((run) => ({
    ...run,
    layers: networks[run.network].layers,
    kernels: networks[run.network].kernels,
    w: new Float32Array(bytes(run.w)),
    epochs: run.epochs || [],
    history: run.history ? new Int16Array(bytes(run.history)) : null,
    cache: new Map(),
  }));
  return { ...data, networks, runs, colours: ramp(data.palette) };
}

/** All w of a run, as learnt (null) or after an epoch, with what is computed from them once. */
function valuesOf(run, epoch) {
  if (!run.cache.has(epoch)) {
    let w = run.w;
    if (epoch !== null) {
      const from = run.epochs.indexOf(epoch) * run.kernels;
      w = Float32Array.from(run.history.subarray(from, from + run.kernels), (v) => 0.5 + v * run.step);
    }
    run.cache.set(epoch, described(w, run.layers));
  }
  return run.cache.get(epoch);
}

/** Values with each layer's sorted copy, mean and quantiles. */
function described(w, layers) {
  const each = layers.map((layer) => {
    const sorted = w.slice(layer.start, layer.start + layer.kernels).sort();
    return { sorted, mean: mean(sorted), q: [0.05, 0.25, 0.5, 0.75, 0.95].map((p) => quantile(sorted, p)) };
  });
  return { w, each };
}

function mean(values) {
  let sum = 0;
  for (const value of values) sum += value;
  return sum / values.length;
}

/** Linear between neighbours, as numpy.quantile. */
function quantile(sorted, p) {
  const at = p * (sorted.length - 1), low = Math.floor(at), high = Math.ceil(at);
  return sorted[low] + (at - low) * (sorted[high] - sorted[low]);
}

function deviation(values) {
  const m = mean(values);
  return Math.sqrt(mean(Float64Array.from(values, (v) => (v - m) ** 2)));
}

/** Pearson's correlation; NaN where one side does not vary. */
function correlation(a, b) {
  const ma = mean(a), mb = mean(b);
  let ab = 0, aa = 0, bb = 0;
  for (let i = 0; i < a.length; i++) {
    ab += (a[i] - ma) * (b[i] - mb);
    aa += (a[i] - ma) ** 2;
    bb += (b[i] - mb) ** 2;
  }
  return aa && bb ? ab / Math.sqrt(aa * bb) : NaN;
}

/** 256 colours between the palette's, as [r, g, b]. */
function ramp(palette) {
  const stops = palette.map((c) => [1, 3, 5].map((i) => parseInt(c.slice(i, i + 2), 16)));
  return Array.from({ length: 256 }, (_, i) => {
    const at = (i / 255) * (stops.length - 1), low = Math.floor(at), high = Math.min(low + 1, stops.length - 1);
    return stops[low].map((v, k) => Math.round(v + (at - low) * (stops[high][k] - v)));
  });
}

/** The colour of a value on the scale centre ± half; beyond its ends, that of the end. */
function colourOf(colours, value, centre, half) {
  return colours[Math.max(0, Math.min(255, Math.round(127.5 + (127.5 * (value - centre)) / half)))];
}

const css = (colour) => `rgb(${colour.join(",")})`;

/** Every layer a column, its kernels from the lowest value (bottom) to the highest; the mean where several share a pixel. */
function drawMap(canvas, values, colours, centre, half) {
  const ratio = window.devicePixelRatio || 1, box = canvas.getBoundingClientRect();
  const width = Math.max(1, Math.round(box.width * ratio)), height = Math.max(1, Math.round(box.height * ratio));
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d"), image = context.createImageData(width, height), count = values.each.length;
  const column = new Uint8ClampedArray(3 * height);
  let drawn = -1;
  for (let x = 0; x < width; x++) {
    const index = Math.min(count - 1, Math.floor((x * count) / width));
    if (index !== drawn) {
      const { sorted } = values.each[index], n = sorted.length;
      for (let y = 0; y < height; y++) {
        const from = Math.floor(((height - 1 - y) * n) / height);
        const to = Math.max(from + 1, Math.floor(((height - y) * n) / height));
        column.set(colourOf(colours, mean(sorted.subarray(from, to)), centre, half), 3 * y);
      }
      drawn = index;
    }
    for (let y = 0; y < height; y++) {
      const at = 4 * (y * width + x);
      image.data[at] = column[3 * y];
      image.data[at + 1] = column[3 * y + 1];
      image.data[at + 2] = column[3 * y + 2];
      image.data[at + 3] = 255;
    }
  }
  context.putImageData(image, 0, 0);
}

/** Every kernel a square, by number from the top left. Returns the number in a row and the side in CSS pixels. */
function drawGrid(canvas, values, chosen, colours, centre, half) {
  const ratio = window.devicePixelRatio || 1, width = canvas.parentElement.clientWidth || 300;
  const side = Math.max(5, Math.min(22, Math.floor(Math.sqrt((width * 130) / values.length))));
  const across = Math.max(1, Math.min(values.length, Math.floor(width / side))), rows = Math.ceil(values.length / across);
  canvas.style.width = `${across * side}px`;
  canvas.style.height = `${rows * side}px`;
  canvas.width = across * side * ratio;
  canvas.height = rows * side * ratio;
  const context = canvas.getContext("2d");
  context.scale(ratio, ratio);
  values.forEach((value, k) => {
    context.fillStyle = css(colourOf(colours, value, centre, half));
    context.fillRect((k % across) * side, Math.floor(k / across) * side, side - 1, side - 1);
  });
  if (chosen !== null) {
    const x = (chosen % across) * side, y = Math.floor(chosen / across) * side;
    for (const [colour, line] of [["#fff", 4], ["#000", 2]]) {
      context.strokeStyle = colour;
      context.lineWidth = line;
      context.strokeRect(x + 0.5, y + 0.5, side - 2, side - 2);
    }
  }
  return { across, side };
}

/** Mean and 5-95 % band of each layer, and another run's mean, on the scale centre ± half. */
function depthChart(values, other, centre, half) {
  const count = values.each.length;
  const x = (i) => ((i + 0.5) * 1000) / count, y = (v) => 100 - (100 * Math.max(-1, Math.min(1, (v - centre) / half)));
  const band = values.each.map((s, i) => `M${x(i)} ${y(s.q[0])}V${y(s.q[4])}`).join("");
  const line = (all) => all.each.map((s, i) => `${i ? "L" : "M"}${x(i)} ${y(s.mean)}`).join("");
  return h("svg", { viewBox: "0 0 1000 200", preserveAspectRatio: "none", "aria-hidden": "true" },
    h("line", { class: "mm-zero", x1: 0, x2: 1000, y1: 100, y2: 100 }),
    h("path", { class: "mm-band", d: band, style: `stroke-width:${Math.max(1, Math.min(9, 420 / count))}px` }),
    other ? h("path", { class: "mm-other", d: line(other) }) : null,
    h("path", { class: "mm-mean", d: line(values) }));
}

const BINS = 41;

/** How many values lie in each of the bins of centre ± half; beyond its ends, in the last one. */
function histogram(values, centre, half) {
  const counts = new Array(BINS).fill(0);
  for (const v of values) counts[Math.max(0, Math.min(BINS - 1, Math.floor(((v - centre + half) * BINS) / (2 * half))))]++;
  return counts;
}

/** Bars in the scale's colours, marks at the quantiles, and another run's outline. */
function histogramChart(layer, other, colours, centre, half) {
  const counts = histogram(layer.sorted, centre, half), others = other ? histogram(other.sorted, centre, half) : [];
  const most = Math.max(...counts, ...others), width = 1000 / BINS, y = (n) => 190 - (170 * n) / most;
  const at = (v) => Math.max(0, Math.min(1000, 500 + (500 * (v - centre)) / half));
  const bars = counts.map((n, i) => h("rect", {
    x: i * width, width: width - 1.5, y: y(n), height: 190 - y(n), class: "mm-bar",
    fill: css(colourOf(colours, centre - half + ((i + 0.5) * 2 * half) / BINS, centre, half)),
  }, h("title", {}, `${n} kernels`)));
  const outline = others.map((n, i) => `${i ? "L" : "M"}${i * width} ${y(n)}H${(i + 1) * width}`).join("");
  const marks = layer.q.map((v, i) => h("line", { class: i === 2 ? "mm-median" : "mm-quantile", x1: at(v), x2: at(v), y1: 0, y2: 190 }));
  return h("svg", { viewBox: "0 0 1000 200", preserveAspectRatio: "none", "aria-hidden": "true" },
    ...bars, outline ? h("path", { class: "mm-other", d: outline }) : null, ...marks,
    h("line", { class: "mm-axis", x1: 0, x2: 1000, y1: 190, y2: 190 }));
}

/** A dot each kernel: the other run's w to the right, this one's up. */
function scatterChart(a, b, centre, half) {
  const at = (v) => 100 * Math.max(-1, Math.min(1, (v - centre) / half));
  let dots = "";
  for (let i = 0; i < a.length; i++) dots += `M${(100 + at(b[i])).toFixed(1)} ${(100 - at(a[i])).toFixed(1)}h0`;
  return h("svg", { viewBox: "0 0 200 200", "aria-hidden": "true" },
    h("line", { class: "mm-zero", x1: 0, x2: 200, y1: 100, y2: 100 }),
    h("line", { class: "mm-zero", x1: 100, x2: 100, y1: 0, y2: 200 }),
    h("line", { class: "mm-zero", x1: 0, x2: 200, y1: 200, y2: 0 }),
    h("path", { class: "mm-dots", d: dots }));
}
