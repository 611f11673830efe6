// How the explorer shows its selection: what follows from the state is written into the parts that build() made.

Object.assign(Explorer.prototype, {
  /** Options and values of the controls. One with nothing to choose is not there. */
  fill() {
    const { run, state, controls: c } = this, { runs } = this.data;
    const options = (key, list, chosen, hide = list.length < 2) => {
      c[key].closest("label").hidden = hide;
      const text = JSON.stringify(list);
      if (c[key].options_ !== text) {
        c[key].options_ = text;
        c[key].replaceChildren(...list.map(([value, label]) => h("option", { value }, label)));
      }
      c[key].value = chosen;
    };
    FIELDS.forEach(([key], i) => {
      const fits = runs.filter((r) => FIELDS.slice(0, i).every(([above]) => r[above] === run[above]));
      const list = [...new Set(fits.map((r) => r[key]))].map((value) => [value, value]);
      options(key, list, run[key], list.length < 2 && (!run[key] || new Set(runs.map((r) => r[key])).size < 2));
    });
    const tell = (r) => FIELDS.map(([key]) => (r[key] === run[key] ? "" : key === "seed" ? `seed ${r.seed}` : r[key])).filter(Boolean).join(", ") || r.name;
    const partners = this.partners();
    options("compare", [["", "no other run"], ...partners.map((r) => [r.name, tell(r)])], state.compare, !partners.length);
    options("view", [["w", "w of this run"], ["difference", "this run − the other"]], state.view, !state.compare);
    options("scope", [["layer", "this layer"], ["network", "all layers"]], state.scope);
    if (c.layer.network_ !== run.network) {
      c.layer.network_ = run.network;
      const groups = new Map();
      for (const l of run.layers) groups.set(l.block, [...(groups.get(l.block) || []), l]);
      c.layer.replaceChildren(...[...groups].map(([block, layers]) => h("optgroup", { label: block },
        ...layers.map((l) => h("option", { value: l.name }, `${l.index + 1}: ${l.name}${l.kind ? ` (${l.kind})` : ""}`)))));
    }
    c.layer.value = state.layer;
    c.epoch.closest("label").hidden = !run.history;
    if (run.history) {
      c.epoch.max = run.epochs.length;
      c.epoch.value = state.epoch === null ? run.epochs.length : run.epochs.indexOf(state.epoch);
      const kept = run.kept === null ? "as learnt" : `as learnt (epoch ${run.kept})`;
      c.epochText.textContent = state.epoch === null ? kept : `after epoch ${state.epoch}`;
      c.epoch.setAttribute("aria-valuetext", c.epochText.textContent);
    }
  },

  /** Draw the selection; what depends on the whole network only where it changed. */
  paint(all = true) {
    const { parts: p, layer, state } = this, [centre, half] = this.range(), values = this.shown(), { colours } = this.data;
    const other = this.isDifference || !this.other ? null : valuesOf(this.other, null), layers = this.run.layers;
    if (all) {
      this.width = this.root.clientWidth;
      this.legend(centre, half);
      drawMap(p.map, values, colours, centre, half);
      p.depth.replaceChildren(depthChart(values, other, centre, half), p.marks[1]);
      p.scale.replaceChildren(...[half, 0, -half].map((v) => h("span", {}, tick(centre + v))));
      p.axis.replaceChildren(...[-1, -0.5, 0, 0.5, 1].map((s) => h("span", {}, tick(centre + s * half))));
      const blocks = layers.filter((l, i) => !i || layers[i - 1].block !== l.block).map((l) => [l, layers.filter((m) => m.block === l.block).length]);
      p.blocks.replaceChildren(...blocks.map(([l, n]) => h("span", { style: `flex:${n} 0 0`, title: l.block }, l.block.replace("dense block", "block").replace("transition ", "T"))));
    }
    for (const mark of p.marks) {
      mark.style.left = `${(100 * layer.index) / layers.length}%`;
      mark.style.width = `${100 / layers.length}%`;
    }
    const s = values.each[layer.index], part = values.w.subarray(layer.start, layer.start + layer.kernels);
    Object.assign(this, drawGrid(p.grid, part, state.kernel, colours, centre, half));
    p.histogram.replaceChildren(histogramChart(s, other && other.each[layer.index], colours, centre, half));
    p.title.textContent = `Layer ${layer.index + 1} of ${layers.length}: ${layer.name}`;
    this.statistics(s, part, centre);
    this.strongest();
    this.comparison();
    this.trials();
    const what = this.isDifference ? "mean difference" : "mean w", above = part.filter((v) => v > centre).length / part.length;
    const about = `Layer ${layer.index + 1} of ${layers.length}, ${this.words(layer)}: ${what} ${fixed(s.mean)}, ${percent(above)} of kernels above ${centre}`;
    const text = state.kernel === null ? `${about}.` : `${about}; ${this.kernelText(state.kernel)}.`;
    if (p.status.textContent !== text) p.status.textContent = text;
    const slide = (box, now, max, words) => Object.entries({ "aria-valuemin": 0, "aria-valuemax": max, "aria-valuenow": now, "aria-valuetext": words }).forEach(([k, v]) => box.setAttribute(k, v));
    slide(p.mapBox, layer.index, layers.length - 1, about);
    slide(p.gridBox, state.kernel || 0, layer.kernels - 1, state.kernel === null ? "no kernel chosen" : this.kernelText(state.kernel));
    p.facts.textContent = this.run.facts;
    const names = FIELDS.map(([key]) => (key === "seed" && this.run.seed ? `seed ${this.run.seed}` : this.run[key]));
    p.run.textContent = names.filter(Boolean).join(" · ");
    if (p.link) p.link.setAttribute("href", this.address());
  },

  legend(centre, half) {
    const [first, second] = this.run.sources, d = this.isDifference, colours = this.data.colours;
    const stops = Array.from({ length: 17 }, (_, i) => css(colours[Math.round((i * 255) / 16)])).join(",");
    this.parts.legend.replaceChildren(
      h("span", {}, `← ${d ? "this run takes more" : "more"} ${second}`),
      h("span", { class: "mm-bar-box" }, h("span", { class: "mm-gradient", style: `background:linear-gradient(to right,${stops})` }),
        h("span", { class: "mm-ticks" }, ...[-half, 0, half].map((v) => h("span", {}, tick(centre + v))))),
      h("span", {}, `${d ? "this run takes more" : "more"} ${first} →`));
  },

  statistics(s, part, centre) {
    const { layer } = this, rows = [["kernels", count(layer.kernels)]];
    if (layer.shape) rows.push(["weight", layer.shape], ["kind", layer.kind]);
    rows.push(["mean", fixed(s.mean)], ["standard deviation", fixed(deviation(part))], ["lowest", fixed(s.sorted[0])]);
    ["5 %", "25 %", "median", "75 %", "95 %"].forEach((name, i) => rows.push([name, fixed(s.q[i])]));
    rows.push(["highest", fixed(s.sorted[s.sorted.length - 1])], [`above ${centre}`, percent(part.filter((v) => v > centre).length / part.length)]);
    const table = h("table", {}, h("caption", {}, this.isDifference ? "Difference in w, this layer" : "w, this layer"),
      h("tbody", {}, ...rows.map(([name, value]) => h("tr", {}, h("th", { scope: "row" }, name), h("td", {}, value)))));
    this.parts.statistics.replaceChildren(table);
  },

  strongest() {
    const { run, layer, state } = this, { w } = this.values, whole = state.scope === "network";
    const from = whole ? 0 : layer.start, to = whole ? run.kernels : layer.start + layer.kernels;
    const ranked = Uint32Array.from({ length: to - from }, (_, i) => from + i).sort((a, b) => w[b] - w[a] || a - b);
    const place = (at) => { const l = run.layers.findLast((one) => one.start <= at); return [l, at - l.start]; };
    const table = (source, list) => h("table", {}, h("caption", {}, `Most ${source}`),
      h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "kernel"), h("th", { scope: "col" }, "w"))),
      h("tbody", {}, ...list.map((at) => {
        const [l, k] = place(at);
        return h("tr", {}, h("td", {}, h("button", { type: "button", onclick: () => this.update({ layer: l.name, kernel: k }) }, whole ? `${l.name}, ${k}` : `${k}`)), h("td", {}, fixed(w[at])));
      }), ...(list.length ? [] : [h("tr", {}, h("td", { colspan: 2 }, "no kernel on this side of 0.5"))])));
    const ends = [[...ranked.slice(0, 6)].filter((at) => w[at] > 0.5), [...ranked.slice(-6)].reverse().filter((at) => w[at] < 0.5)];
    const key = [state.run, state.epoch, state.scope, whole || state.layer].join();
    if (this.strongestOf === key) return; // a click on one of the buttons keeps its focus
    this.strongestOf = key;
    this.parts.strongest.replaceChildren(...ends.map((list, i) => table(run.sources[i], list)));
  },

  comparison() {
    const { parts: p, other, layer, run } = this;
    p.compareSection.hidden = !other;
    if (!other) return;
    const a = this.values, b = valuesOf(other, null), half = this.data.half;
    const cut = (v) => v.w.subarray(layer.start, layer.start + layer.kernels), means = (v) => v.each.map((s) => s.mean);
    const rows = [["this layer’s kernels", cut(a), cut(b)], ["all kernels", a.w, b.w], ["layers’ means", means(a), means(b)]].map(([name, x, y]) => {
      const away = Array.from(x, (v, i) => v - y[i]), side = Array.from(x, (v, i) => v > 0.5 === y[i] > 0.5).filter(Boolean).length / away.length;
      return h("tr", {}, h("th", { scope: "row" }, name), ...[fixed(correlation(x, y), 2), signed(mean(away)), fixed(mean(away.map(Math.abs))), percent(side)].map((v) => h("td", {}, v)));
    });
    const head = ["", "correlation", "mean difference", "mean |difference|", "same side of 0.5"].map((text) => h(text ? "th" : "td", text ? { scope: "col" } : {}, text));
    const same = run.sources.join() === other.sources.join();
    p.comparison.replaceChildren(
      h("p", { class: "mm-caption" }, `This run (${run.name}) minus the other (${other.name}, as learnt).`, same ? "" : ` The other’s sources are ${other.sources.join(" (w = 1) and ")} (w = 0).`),
      h("div", { class: "mm-scroll", tabindex: 0, role: "region", "aria-label": "Comparison of two runs" }, h("table", {}, h("thead", {}, h("tr", {}, ...head)), h("tbody", {}, ...rows))),
      h("figure", { class: "mm-scatter" }, scatterChart(cut(a), cut(b), 0.5, half), h("figcaption", {}, `This layer’s kernels: w in the other run (across) and in this run (up), both ${tick(0.5 - half)} to ${tick(0.5 + half)}.`)));
  },

  /** Validation scores with other weights in a layer: asked for live, and those that were asked for. */
  trials() {
    const { parts: p, run, layer, live } = this, about = (this.data.trials || {})[run.name];
    const known = this.tried.filter((one) => one.run === run.name), name = (w) => TRIALS.find(([value]) => value === w)[1](run.sources);
    p.trial.hidden = !(about && (live || known.length));
    const key = JSON.stringify([run.name, layer.name, this.tried, this.asked]);
    if (p.trial.hidden || p.trial.key_ === key) return;
    p.trial.key_ = key;
    const focus = p.trial.contains(document.activeElement) ? document.activeElement.dataset.w : null;
    const learnt = known.find((one) => one.w === null), gap = (one) => (learnt && "score" in one && one.w !== null ? signed(one.score - learnt.score) : "");
    const buttons = TRIALS.map(([w, label]) => h("button", { type: "button", "data-w": String(w), onclick: () => { this.asked = { run: run.name, layer: layer.name, w, number: ((this.asked || {}).number || 0) + 1 }; live.ask(this.asked); this.trials(); } }, label(run.sources)));
    const waiting = this.asked && !this.tried.some((one) => one.number === this.asked.number);
    const last = this.tried.at(-1);
    const said = waiting ? `Computing ${name(this.asked.w)} in ${this.asked.layer} …` : !last ? "" : last.error ? `Could not be computed: ${last.error}` : `${name(last.w)} in ${last.w === null ? "every layer" : last.layer}: ${about.metric} ${fixed(last.score)}.`;
    const rows = known.filter((one) => "score" in one).map((one) => h("tr", {}, ...[one.w === null ? "every layer" : one.layer, name(one.w), fixed(one.score), gap(one)].map((text) => h("td", {}, text))));
    p.trial.replaceChildren(
      h("h3", {}, "What if"),
      h("p", { class: "mm-caption" }, `${about.metric} on the ${count(about.images)} validation images, of the network as its linear probe left it, with w of one layer’s kernels replaced. The test images are not used.`),
      ...(live ? [h("div", { class: "mm-controls", role: "group", "aria-label": `w of all kernels of ${layer.name}` }, h("span", {}, `w of ${layer.name}:`), ...buttons), (this.said ||= h("p", { role: "status" }))] : []),
      ...(rows.length ? [h("div", { class: "mm-scroll", tabindex: 0, role: "region", "aria-label": "Validation scores" }, h("table", {}, h("thead", {}, h("tr", {}, ...["layer", "w", `validation ${about.metric}`, "against learnt"].map((text) => h("th", { scope: "col" }, text)))), h("tbody", {}, ...rows)))] : []));
    if (this.said && this.said.textContent !== said) this.said.textContent = said; // one element, so that it is read out
    if (focus !== null) [...p.trial.querySelectorAll("button")].find((one) => one.dataset.w === focus)?.focus();
  },
});

/** The selection that the page's address asks for, or null. */
function addressed() {
  const asked = new URLSearchParams(location.hash.slice(1));
  if (!asked.has("explorer")) return null;
  const selection = Object.fromEntries(asked);
  for (const key of ["kernel", "epoch"]) selection[key] = key in selection ? Number(selection[key]) : null;
  return selection;
}

/** On a page without a kernel. */
function mount(root) {
  const data = JSON.parse(root.parentElement.querySelector("script[type='application/json']").textContent);
  const explorer = new Explorer(root, data, { ...data.selection, ...addressed() }, null);
  window.addEventListener("hashchange", () => { const asked = addressed(); if (asked) explorer.update(asked, false); });
  if (addressed()) root.scrollIntoView();
  root.dataset.ready = "page";
}

/** Live: anywidget's view. */
function render({ model, el }) {
  const root = h("div", { class: "mm-explorer" });
  el.append(root);
  const live = {
    set: (selection) => { model.set("selection", selection); model.save_changes(); },
    ask: (trial) => { model.set("_asked", trial); model.save_changes(); },
  };
  const explorer = new Explorer(root, { ...JSON.parse(model.get("_content")), tried: model.get("_tried") }, model.get("selection"), live);
  const chosen = () => { if (JSON.stringify(explorer.legal(model.get("selection"))) !== JSON.stringify(explorer.state)) explorer.update(model.get("selection"), false); };
  const tried = () => { explorer.tried = model.get("_tried"); explorer.trials(); };
  model.on("change:selection", chosen);
  model.on("change:_tried", tried);
  requestAnimationFrame(() => explorer.paint());
  root.dataset.ready = "live";
  return () => { explorer.observer.disconnect(); model.off("change:selection", chosen); model.off("change:_tried", tried); };
}
