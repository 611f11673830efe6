// The explorer's controls and state. On a page it is mounted on its inline data; live it is an anywidget's view,
// whose selection Python sees and sets. The functions of explorer_draw.js stand before these in one module.

const FIELDS = [["study", "Study"], ["backbone", "Backbone"], ["label", "Run"], ["seed", "Seed"]];
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

  /** A whole selection out of any: what does not fit the data gives way to the nearest that does. */
  legal(wanted) {
    const { runs } = this.data, run = runs.find((r) => r.name === wanted.run) || runs[0];
    const layer = run.layers.find((l) => l.name === wanted.layer) || run.layers[0];
    const compare = runs.find((r) => r.name === wanted.compare && r !== run && r.network === run.network);
    const kernel = Number.isInteger(wanted.kernel) && wanted.kernel >= 0 && wanted.kernel < layer.kernels ? wanted.kernel : null;
    return {
      run: run.name, layer: layer.name, kernel, epoch: run.epochs.includes(wanted.epoch) ? wanted.epoch : null,
      compare: compare ? compare.name : "", view: compare && wanted.view === "difference" ? "difference" : "w",
      scope: wanted.scope === "network" ? "network" : "layer",
    };
  }

  /** Change the selection and show it. */
  update(change, tell = true) {
    const before = this.state;
    this.state = this.legal({ ...before, ...change });
    this.fill();
    const redraw = ["run", "epoch", "compare", "view"].some((key) => before[key] !== this.state[key]);
    this.paint(redraw || !this.width);
    if (tell && this.live) this.live.set(this.state);
    if (tell && !this.live) history.replaceState(null, "", this.address());
  }

  address() {
    const given = Object.entries(this.state).filter(([, value]) => value !== null && value !== "");
    return `#explorer&${new URLSearchParams(given)}`;
  }

  build() {
    const select = (key, label, onchange) => {
      const control = h("select", { "data-mm": key, onchange: (event) => onchange(event.target.value) });
      return [control, h("label", { class: `mm-${key}` }, h("span", {}, label), control)];
    };
    const c = (this.controls = {}), rows = [];
    const add = (key, label, onchange) => { const [control, row] = select(key, label, onchange); c[key] = control; rows.push(row); };
    FIELDS.forEach(([key, label], i) => add(key, label, (value) => this.chooseRun(i, value)));
    add("compare", "Compare with", (value) => this.update({ compare: value, view: value ? this.state.view : "w" }));
    add("view", "Colours show", (value) => this.update({ view: value }));
    c.epoch = h("input", { type: "range", "data-mm": "epoch", min: 0, step: 1, oninput: (event) => this.chooseEpoch(+event.target.value) });
    c.epochText = h("output");
    rows.push(h("label", { class: "mm-epoch" }, h("span", {}, "Epoch"), c.epoch, c.epochText));
    add("layer", "Layer", (value) => this.update({ layer: value, kernel: null }));
    const step = (by, label) => h("button", { type: "button", onclick: () => this.step(by) }, label);
    rows.push(h("span", { class: "mm-step" }, step(-1, "← previous layer"), step(1, "next layer →")));

    const p = (this.parts = {});
    const slider = (label, keys) => h("div", { class: "mm-slider", tabindex: 0, role: "slider", "aria-label": label, onkeydown: (event) => this.key(event, keys) });
    p.legend = h("div", { class: "mm-legend" });
    p.run = h("p", { class: "mm-run" });
    p.status = h("p", { class: "mm-status", role: "status", "aria-live": "polite" });
    p.map = h("canvas", { class: "mm-map" });
    p.marks = [0, 1].map(() => h("span", { class: "mm-mark" }));
    p.mapBox = slider("Layer, by depth", (name) => this.layerKeys(name));
    p.mapBox.append(p.map, p.marks[0]);
    p.blocks = h("div", { class: "mm-blocks", "aria-hidden": "true" });
    p.readout = h("p", { class: "mm-readout", "aria-hidden": "true" }, "\u00a0");
    p.mapBox.addEventListener("mousemove", (event) => this.hoverMap(event));
    p.mapBox.addEventListener("mouseleave", () => this.read(""));
    p.mapBox.addEventListener("click", (event) => this.update({ layer: this.run.layers[this.columnAt(event)].name, kernel: null }));
    p.depth = h("div", { class: "mm-depth" });
    p.scale = h("div", { class: "mm-scale", "aria-hidden": "true" });
    p.grid = h("canvas");
    p.gridBox = slider("Kernel of the layer", (name) => this.kernelKeys(name));
    p.gridBox.append(p.grid);
    p.gridBox.addEventListener("mousemove", (event) => this.hoverGrid(event));
    p.gridBox.addEventListener("mouseleave", () => this.read(""));
    p.gridBox.addEventListener("click", (event) => { const k = this.kernelAt(event); if (k !== null) this.update({ kernel: k }); });
    for (const name of ["histogram", "axis", "statistics", "strongest", "comparison", "trial", "facts"]) p[name] = h("div", { class: `mm-${name}` });
    p.title = h("h3", { class: "mm-title" });
    add("scope", "Strongest kernels of", (value) => this.update({ scope: value }));
    const scope = rows.pop();
    p.compareSection = h("section", { class: "mm-compare-section" }, h("h3", {}, "Two runs"), p.comparison);
    p.tip = h("p", { class: "mm-tip" }, "Arrow keys move through layers and kernels once the map or the squares have the focus; a click chooses. ", this.live ? "" : (p.link = h("a", {}, "Link to this view")));
    this.root.replaceChildren(
      h("div", { class: "mm-controls", role: "group", "aria-label": "What to show" }, ...rows), p.run, p.status,
      h("section", {}, h("h3", {}, "Every kernel, by depth"), p.legend, h("div", { class: "mm-deep" }, h("span", { class: "mm-side" }, "kernels of a layer, lowest to highest"), p.mapBox, p.blocks),
        h("p", { class: "mm-caption" }, "Mean of each layer, and the band that holds 5 to 95 % of its kernels:"), h("div", { class: "mm-deep" }, p.scale, p.depth), p.readout),
      h("section", {}, p.title, h("p", { class: "mm-caption" }, "Its kernels, by number:"), p.gridBox, h("div", { class: "mm-two" }, h("div", {}, p.histogram, p.axis), p.statistics)),
      h("section", {}, h("div", { class: "mm-controls" }, scope), p.strongest), p.compareSection, p.trial, p.tip, p.facts);
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
    const other = this.other ? `; ${fixed(valuesOf(this.other, null).w[at])} in the other run, difference ${signed(w - valuesOf(this.other, null).w[at])}` : "";
    return `kernel ${k}: w ${fixed(w)}, ${w === 0.5 ? "half of each" : `more ${w > 0.5 ? first : second}`}${other}`;
  }

  /** What the colours show: w, or this run's minus the other's. */
  shown() {
    if (!this.isDifference) return this.values;
    const key = `minus ${this.state.compare} at ${this.state.epoch}`, { cache } = this.run;
    if (!cache.has(key)) {
      const b = valuesOf(this.other, null).w;
      cache.set(key, described(this.values.w.map((v, i) => v - b[i]), this.run.layers));
    }
    return cache.get(key);
  }

  /** Centre and half width of the colour scale: one for all w; for differences one for the two runs. */
  range() {
    if (!this.isDifference) return [0.5, this.data.half];
    const most = this.shown().w.reduce((m, v) => Math.max(m, Math.abs(v)), 0.001), unit = 10 ** Math.floor(Math.log10(most)) / 2;
    return [0, Math.ceil(most / unit - 1e-9) * unit];
  }
}
