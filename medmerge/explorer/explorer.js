// The explorer's controls and state. On a page it is mounted on its inline data; live it is an anywidget's view,
// whose selection Python sees and sets. The functions of explorer_draw.js stand before these in one module.

const FIELDS = [["study", "Study"], ["backbone", "Network"], ["label", "Run"], ["seed", "Seed"]];
const NULLS = [["shuffled", "w shuffled within layers"], ["start", "w’s start, 0.5"]];
const ORDERS = [["number", "in their own order"], ["w", "sorted by w"]];
const TRIALS = [[0, (s) => `0: all ${s[1]}`], [0.5, () => "0.5: half each"], [1, (s) => `1: all ${s[0]}`], [null, () => "as learnt"]];
const fixed = (value, digits = 3) => (Number.isFinite(value) ? value.toFixed(digits).replace("-", "−") : "undefined");
const tick = (value) => fixed(value).replace(/0$/, "");
const signed = (value) => (value > 0 ? "+" : "") + fixed(value);
const count = (n) => n.toLocaleString("en-GB");
const percent = (share) => `${(100 * share).toFixed(0)} %`;
const plural = (n, what) => `${count(n)} ${what}${n === 1 ? "" : "s"}`;

class Explorer {
  /** @param live {get, set, tried, ask} of a widget, or null on a page. */
  constructor(root, data, selection, live) {
    Object.assign(this, { root, live, data: unpack(data), tried: data.tried || [] });
    this.state = this.legal(selection);
    this.build();
    this.update({}, false);
    this.observer = new ResizeObserver(() => root.clientWidth !== this.width && this.paint());
    this.observer.observe(root);
  }

  get run() { return this.data.runs.find((run) => run.name === this.state.run); }
  get other() { return this.data.runs.find((run) => run.name === this.state.compare) || null; }
  get layer() { return this.run.layers.find((layer) => layer.name === this.state.layer); }
  get values() { return valuesOf(this.run, this.state.epoch); }
  get isDifference() { return this.state.view === "difference"; }
  partners() { return this.data.runs.filter((run) => run !== this.run && run.network === this.run.network); }
  get siblings() { return this.partners().filter((r) => FIELDS.every(([key]) => (key === "seed") === (r[key] !== this.run[key]))); }

  /** What the run is compared with: another run as learnt, its own w shuffled, or their start; null for nothing. */
  get beside() {
    const { run, other, state: { compare, epoch } } = this;
    if (other) return valuesOf(other, null);
    if (compare === "shuffled") return once(run, `shuffled ${epoch}`, () => shuffled(this.values.w, run.layers));
    return compare ? once(run, "start", () => run.w.map(() => 0.5)) : null;
  }

  /** How this run calls another one: by what differs. */
  called(run) {
    const apart = FIELDS.filter(([key]) => run[key] !== this.run[key]).map(([key]) => (key === "seed" ? `seed ${run.seed}` : run[key]));
    return apart.join(", ") || run.name;
  }

  get besideName() { return this.other ? this.called(this.other) : (NULLS.find(([key]) => key === this.state.compare) || [])[1]; }

  /** A whole selection out of any: what does not fit the data gives way to the nearest that does. */
  legal(wanted) {
    const { runs } = this.data, run = runs.find((r) => r.name === wanted.run) || runs[0];
    const layer = run.layers.find((l) => l.name === wanted.layer) || run.layers[0];
    const free = ["", ...NULLS.map(([key]) => key), ...runs.filter((r) => r !== run && r.network === run.network).map((r) => r.name)];
    const compare = free.includes(wanted.compare) ? wanted.compare : "shuffled";
    const kernel = Number.isInteger(wanted.kernel) && wanted.kernel >= 0 && wanted.kernel < layer.kernels ? wanted.kernel : null;
    return {
      run: run.name, layer: layer.name, kernel, epoch: run.epochs.includes(wanted.epoch) ? wanted.epoch : null,
      compare, view: wanted.view === "own" || (wanted.view === "difference" && compare) ? wanted.view : "w", order: wanted.order === "w" ? "w" : "number",
    };
  }

  /** Change the selection and show it. */
  update(change, tell = true) {
    const before = this.state;
    this.state = this.legal({ ...before, ...change });
    this.fill();
    const redraw = ["run", "epoch", "compare", "view", "order"].some((key) => before[key] !== this.state[key]);
    this.paint(redraw || !this.width);
    if (tell && this.live) this.live.set(this.state);
    if (tell && !this.live) history.replaceState(null, "", this.address());
  }

  address() {
    const given = Object.entries(this.state).filter(([, value]) => value !== null);
    return `#explorer&${new URLSearchParams(given)}`;
  }

  build() {
    const c = (this.controls = {}), p = (this.parts = {});
    const add = (key, label, onchange = (value) => this.update({ [key]: value })) => {
      c[key] = h("select", { "data-mm": key, onchange: (event) => onchange(event.target.value) });
      return h("label", { class: `mm-${key}` }, h("span", {}, label), c[key]);
    };
    const whole = FIELDS.map(([key, label], i) => add(key, label, (value) => this.chooseRun(i, value)));
    whole.push(add("compare", "Beside it"), add("order", "Kernels of a layer"), add("view", "Colours show"));
    c.epoch = h("input", { type: "range", "data-mm": "epoch", min: 0, step: 1, oninput: (event) => this.chooseEpoch(+event.target.value) });
    c.epochText = h("output");
    whole.push(h("label", { class: "mm-epoch" }, h("span", {}, "Epoch: ", c.epochText), c.epoch));
    const step = (by, label) => h("button", { type: "button", onclick: () => this.step(by) }, label);
    const single = [add("layer", "Layer", (value) => this.update({ layer: value, kernel: null })), h("span", { class: "mm-step" }, step(-1, "← previous layer"), step(1, "next layer →"))];

    for (const name of ["tour", "legend", "blocks", "depth", "scale", "histogram", "axis", "statistics", "strongest", "comparison", "scores", "trial", "facts"]) p[name] = h("div", { class: `mm-${name}` });
    for (const name of ["lede", "note", "status", "readout", "limits"]) p[name] = h("p", { class: `mm-${name}` });
    for (const name of ["map", "map-other", "grid"]) p[name] = h("canvas", { class: `mm-${name}` });
    for (const name of ["run", "title"]) p[name] = h("h2", { class: `mm-${name}` });
    const set = (part, attributes) => Object.entries(attributes).forEach(([key, value]) => part.setAttribute(key, value));
    set(p.tour, { role: "group", "aria-label": "What to see" });
    for (const part of [p.status, p.note]) set(part, { role: "status", "aria-live": "polite" });
    for (const part of [p.blocks, p.scale, p.readout]) set(part, { "aria-hidden": "true" });
    p.facts.tabIndex = -1;
    this.marked = [0, 1, 2].map(() => h("span", { class: "mm-mark" }));
    const slider = (label, keys) => h("div", { class: "mm-slider", tabindex: 0, role: "slider", "aria-label": label, onkeydown: (event) => this.key(event, keys) });
    p.mapBox = slider("Layer, by depth", (name) => this.layerKeys(name));
    p.mapBox.append(p.map, this.marked[0]);
    p.otherBox = h("div", { class: "mm-beside" }, p["map-other"], this.marked[1]);
    p.gridBox = slider("Kernel of the layer", (name) => this.kernelKeys(name));
    p.gridBox.append(p.grid);
    this.pointed(p.mapBox, (event) => this.hoverMap(event), (event) => this.update({ layer: this.run.layers[this.columnAt(event)].name, kernel: null }));
    this.pointed(p.otherBox, () => {}, (event) => this.update({ layer: this.run.layers[this.columnAt(event)].name, kernel: null }));
    this.pointed(p.gridBox, (event) => this.hoverGrid(event), (event) => { const k = this.kernelAt(event); if (k !== null) this.update({ kernel: k }); });
    p.sides = [0, 1].map(() => h("span", { class: "mm-side" }));
    const deep = (...parts) => h("div", { class: "mm-deep" }, ...parts);
    const section = (name, ...parts) => (p[name] = h("section", { class: `mm-${name}` }, ...parts));
    const tip = h("p", { class: "mm-tip" }, "Arrow keys move through layers and kernels once the map or the squares have the focus; a click chooses. ", this.live ? "" : (p.link = h("a", {}, "Link to this view")));
    this.root.replaceChildren(
      h("button", { type: "button", class: "mm-skip", onclick: () => p.facts.focus() }, "Skip the explorer"), p.lede, p.tour, p.note,
      section("maps", p.run, p.legend, deep(p.sides[0], p.mapBox), (p.second = deep(p.sides[1], p.otherBox)), deep(h("span"), p.blocks), p.readout,
        h("div", { class: "mm-controls", role: "group", "aria-label": "What to show" }, ...whole), deep(p.scale, p.depth), p.limits, p.status),
      section("worth", h("h2", {}, "The score when w is replaced"), p.scores),
      section("single", p.title, h("div", { class: "mm-controls" }, ...single), h("p", { class: "mm-caption" }, "Its kernels, by number:"), p.gridBox, h("div", { class: "mm-two" }, h("div", {}, p.histogram, p.axis), p.statistics)),
      section("ends", h("h2", {}, "Strongest kernels of all layers"), p.strongest), section("compared", h("h2", {}, "The two side by side"), p.comparison), p.trial, tip, p.facts);
    if (this.live) this.root.addEventListener("keydown", (event) => { if (!event.ctrlKey && !event.altKey && !event.metaKey) event.stopPropagation(); }); // JupyterLab's shortcuts
  }

  pointed(part, hover, choose) {
    part.addEventListener("mousemove", hover);
    part.addEventListener("mouseleave", () => this.read(""));
    part.addEventListener("click", choose);
  }

  chooseRun(field, value) {
    const wanted = FIELDS.map(([key], i) => (i === field ? value : this.run[key]));
    const fits = (run, i) => run[FIELDS[i][0]] === wanted[i];
    const candidates = this.data.runs.filter((run) => FIELDS.slice(0, field + 1).every((_, i) => fits(run, i)));
    const score = (run) => FIELDS.reduce((sum, _, i) => sum + fits(run, i), 0);
    const best = candidates.reduce((a, b) => (score(b) > score(a) ? b : a)), same = best.network === this.run.network;
    const near = Math.round((this.layer.index / Math.max(1, this.run.layers.length - 1)) * (best.layers.length - 1));
    this.update({ run: best.name, epoch: best.epochs.includes(this.state.epoch) ? this.state.epoch : null, ...(same ? {} : { layer: best.layers[near].name, kernel: null }) });
  }

  chooseEpoch(at) { this.update({ epoch: at < this.run.epochs.length ? this.run.epochs[at] : null }); }

  step(by) {
    const to = Math.max(0, Math.min(this.run.layers.length - 1, this.layer.index + by));
    if (to !== this.layer.index) this.update({ layer: this.run.layers[to].name, kernel: null });
  }

  key(event, keys) {
    const act = event.ctrlKey || event.altKey || event.metaKey ? null : keys(event.key);
    if (!act) return;
    event.preventDefault();
    event.stopPropagation();
    act();
  }

  layerKeys(key) {
    const by = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1, PageDown: 10, PageUp: -10, Home: -1e6, End: 1e6 }[key];
    return by && (() => this.step(by));
  }

  kernelKeys(key) {
    if (key === "Escape") return () => this.update({ kernel: null });
    const by = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: this.across, ArrowUp: -this.across }[key];
    const last = this.layer.kernels - 1, now = this.state.kernel === null ? (by > 0 ? -by : last - by) : this.state.kernel;
    const to = { Home: 0, End: last }[key] ?? (by && Math.max(0, Math.min(last, now + by)));
    return to === undefined ? null : () => this.update({ kernel: to });
  }

  columnAt(event) {
    const box = this.parts.map.getBoundingClientRect(), { layers } = this.run;
    return Math.max(0, Math.min(layers.length - 1, Math.floor(((event.clientX - box.left) / box.width) * layers.length)));
  }

  kernelAt(event) {
    const box = this.parts.grid.getBoundingClientRect();
    const x = Math.floor((event.clientX - box.left) / this.side), y = Math.floor((event.clientY - box.top) / this.side), k = y * this.across + x;
    return x >= 0 && x < this.across && y >= 0 && k < this.layer.kernels ? k : null;
  }

  hoverMap(event) {
    const layer = this.run.layers[this.columnAt(event)], s = this.shown().each[layer.index];
    this.read(`${layer.index + 1}: ${this.words(layer)}; ${this.isDifference ? "mean difference" : "mean w"} ${fixed(s.mean)}, 5–95 % ${fixed(s.q[0])} to ${fixed(s.q[4])}`);
  }

  hoverGrid(event) { const k = this.kernelAt(event); this.read(k === null ? "" : this.kernelText(k)); }
  read(text) { this.parts.readout.textContent = text || "\u00a0"; }
  words(layer) { return [layer.name, layer.kind, plural(layer.kernels, "kernel")].filter(Boolean).join(", "); }

  kernelText(k) {
    const at = this.layer.start + k, w = this.values.w[at], [first, second] = this.run.sources;
    const other = this.other ? `; ${fixed(this.beside.w[at])} in the other run, difference ${signed(w - this.beside.w[at])}` : "";
    return `kernel ${k}: w ${fixed(w)}, ${w === 0.5 ? "half of each" : `more ${w > 0.5 ? first : second}`}${other}`;
  }

  /** What the colours show: w, or this run's minus the other's. */
  shown() {
    if (!this.isDifference) return this.values;
    const { values: { w }, beside, state } = this;
    return once(this.run, `minus ${state.compare} at ${state.epoch}`, () => w.map((v, i) => v - beside.w[i]));
  }

  /** Centre and half width of the colour scale: one for all w, or that of 99 % of this run's, or of the differences. */
  range() {
    if (this.state.view === "w") return [0.5, this.data.half];
    const centre = this.isDifference ? 0 : 0.5, away = this.shown().w.map((v) => Math.abs(v - centre)).sort();
    const most = Math.max(quantile(away, this.isDifference ? 1 : 0.99), 0.001), unit = 10 ** Math.floor(Math.log10(most)) / 2;
    return [centre, Math.ceil(most / unit - 1e-9) * unit];
  }
}
