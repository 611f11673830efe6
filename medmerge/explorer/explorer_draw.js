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

/** A table that scrolls by itself where it is wide. A row's first cell heads it; cells are text, or elements as they are. */
function scrolling(label, head, rows) {
  const heading = (text) => h(text ? "th" : "td", text ? { scope: "col" } : {}, text);
  const cell = (content, i) => (content instanceof Element ? content : h(i ? "td" : "th", i ? {} : { scope: "row" }, content));
  const body = rows.map((row) => h("tr", {}, ...row.map(cell)));
  return h("div", { class: "mm-scroll", tabindex: 0, role: "region", "aria-label": label },
    h("table", {}, h("thead", {}, h("tr", {}, ...head.map(heading))), h("tbody", {}, ...body)));
}

/** w out of {bits, step, base64}: whole numbers that step times gives w - 0.5. */
function weights({ bits, step, base64 }) {
  const { buffer } = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
  return Float32Array.from(bits === 8 ? new Int8Array(buffer) : new Int16Array(buffer), (v) => 0.5 + v * step);
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
    w: weights(run.w),
    precision: run.w.step / 2,
    epochs: run.epochs || [],
    history: run.history ? weights(run.history) : null,
    cache: new Map(),
  }));
  return { ...data, networks, runs, colours: ramp(data.palette) };
}

/** All w of a run, as learnt (null) or after an epoch, with what is computed from them once. */
function valuesOf(run, epoch) {
  return once(run, epoch, () => {
    const from = run.epochs.indexOf(epoch) * run.kernels;
    return epoch === null ? run.w : run.history.subarray(from, from + run.kernels);
  });
}

/** Weights of a run under a name, described when they are first asked for. */
function once(run, key, compute) {
  if (!run.cache.has(key)) run.cache.set(key, described(compute(), run.layers));
  return run.cache.get(key);
}

/** Values with each layer's own, a sorted copy of them, their mean and quantiles. */
function described(w, layers) {
  const each = layers.map((layer) => {
    const own = w.subarray(layer.start, layer.start + layer.kernels), sorted = own.slice().sort();
    return { own, sorted, mean: mean(sorted), q: [0.05, 0.25, 0.5, 0.75, 0.95].map((p) => quantile(sorted, p)) };
  });
  return { w, each };
}

/** The same weights, each layer's in the order of a hash of their kernels' numbers: as payload.shuffled. */
function shuffled(w, layers) {
  const found = w.slice(), keys = Uint32Array.from(w, (_, i) => {
    let k = Math.imul((i + 1) ^ ((i + 1) >>> 16), 0x85ebca6b);
    k = Math.imul(k ^ (k >>> 13), 0xc2b2ae35);
    return k ^ (k >>> 16);
  });
  for (const { start, kernels } of layers) {
    const order = Uint32Array.from({ length: kernels }, (_, i) => start + i).sort((a, b) => keys[a] - keys[b]);
    order.forEach((from, i) => { found[start + i] = w[from]; });
  }
  return found;
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

/** With n - 1, as pandas has it. */
function deviation(values) {
  const m = mean(values);
  return Math.sqrt(values.reduce((sum, v) => sum + (v - m) ** 2, 0) / (values.length - 1));
}

/** The share of the variance of w that lies between layers. */
function between(values) {
  const m = mean(values.w), total = values.w.reduce((sum, v) => sum + (v - m) ** 2, 0);
  return values.each.reduce((sum, layer) => sum + layer.own.length * (layer.mean - m) ** 2, 0) / total;
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

/** Which of 256 colours a value has on the scale centre ± half; beyond its ends, that of the end. */
const shade = (value, centre, half) => Math.max(0, Math.min(255, Math.round(127.5 + (127.5 * (value - centre)) / half)));
const colourOf = (colours, value, centre, half) => colours[shade(value, centre, half)];
const css = (colour) => `rgb(${colour.join(",")})`;

/** Every layer a column, its kernels by number from the top, or sorted from the highest; nearest where pixels are few. */
function drawMap(canvas, values, order, colours, centre, half) {
  const ratio = window.devicePixelRatio || 1, box = canvas.getBoundingClientRect();
  const width = Math.max(1, Math.round(box.width * ratio)), height = Math.max(1, Math.round(box.height * ratio));
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d"), image = context.createImageData(width, height), pixels = new Uint32Array(image.data.buffer);
  const packed = colours.map(([r, g, b]) => (255 << 24) | (b << 16) | (g << 8) | r), count = values.each.length;
  for (let x = 0; x < width; x++) {
    const { own, sorted } = values.each[Math.min(count - 1, Math.floor((x * count) / width))], n = own.length;
    for (let y = 0; y < height; y++) {
      const at = Math.floor(((y + 0.5) * n) / height);
      pixels[y * width + x] = packed[shade(order === "w" ? sorted[n - 1 - at] : own[at], centre, half)];
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

/** Mean and 5-95 % band of each layer, another's mean, and lines at ± budget (0: none), on the scale centre ± half. */
function depthChart(values, other, budget, centre, half) {
  const count = values.each.length;
  const x = (i) => ((i + 0.5) * 1000) / count, y = (v) => 100 - (100 * Math.max(-1, Math.min(1, (v - centre) / half)));
  const band = values.each.map((s, i) => `M${x(i)} ${y(s.q[0])}V${y(s.q[4])}`).join("");
  const line = (all) => all.each.map((s, i) => `${i ? "L" : "M"}${x(i)} ${y(s.mean)}`).join("");
  const level = (name, v) => h("line", { class: name, x1: 0, x2: 1000, y1: y(v), y2: y(v) });
  return h("svg", { viewBox: "0 0 1000 200", preserveAspectRatio: "none", "aria-hidden": "true" },
    level("mm-zero", centre), ...(budget ? [1, -1].map((sign) => level("mm-budget", centre + sign * budget)) : []),
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
