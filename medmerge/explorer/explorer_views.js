// How the explorer shows its selection: what follows from the state is written into the parts that build() made.

const CONTROLS = {
  learnt: () => "as learnt", start: () => "0.5 everywhere: its start", "layer mean": () => "each layer’s mean",
  shuffled: () => "shuffled within layers", random: () => "random, as widely spread",
  "first source": (s) => `1 everywhere: ${s[0]} alone`, "second source": (s) => `0 everywhere: ${s[1]} alone`,
};

/** The guided start: a button, what it selects (nothing where there is nothing to see), and a sentence on what to see. */
const TOUR = [
  ["Learnt, and shuffled", () => ({ compare: "shuffled" }), (e) => `Above, w as learnt; below, the same w shuffled within each layer. What both maps share belongs to whole layers, which explain ${percent(between(e.values))} of w’s variance. The rest lies between the kernels of a layer: whether that is more than chance, another seed tells.`],
  ["Another seed", (e) => e.siblings.length && { compare: (e.siblings.includes(e.other) ? e.other : e.siblings[0]).name }, (e) => {
    const a = e.values, b = e.beside, means = (v) => v.each.map((s) => s.mean), whole = correlation(a.w, b.w);
    const same = e.run.origin === e.other.origin ? "from the same two networks" : "from networks trained anew, whose kernels are others";
    return `Below, seed ${e.other.seed} of the same study, ${same}. Chance does not take the same kernels twice: over all kernels the two correlate at ${fixed(whole, 2)}, over layers’ means at ${fixed(correlation(means(a), means(b)), 2)} (0 is chance, 1 the same choice).`;
  }],
  ["How far w could go", (e) => e.run.budget && { compare: "start" }, (e) => {
    const away = e.run.w.map((v) => Math.abs(v - 0.5)).sort(), { budget } = e.run;
    return `The dashed lines of the chart below are w’s budget, its learning rate × steps: about as far as Adam could carry it from 0.5, here ±${fixed(budget, 2)}. Half of all kernels stayed within ±${fixed(quantile(away, 0.5))}; the strongest went ${percent(away[away.length - 1] / budget)} of the way.`;
  }],
  ["What w is worth", (e) => e.run.controls.length && { compare: "" }, (e) => {
    const score = Object.fromEntries(e.run.controls.map(([name, scores]) => [name, fixed(mean(scores))]));
    return `Validation ${e.run.metric} with w as learnt is ${score.learnt}; with every w back at 0.5 ${score.start}, with w shuffled within layers ${score.shuffled}. The epoch was chosen with the learnt w, which favours it. The table below has the rest.`;
  }],
];

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
    options("order", ORDERS, state.order);
    options("view", [["w", "w, on all runs’ scale"], ["own", "w, on its own scale"], ...(state.compare ? [["difference", "this run − beside it"]] : [])], state.view);
    const { siblings } = this, listed = (list) => list.map((r) => [r.name, this.called(r)]);
    const groups = [["", [["", "nothing"]]], ["Chance alone", NULLS], ["Another seed", listed(siblings)]];
    const others = listed(this.partners().filter((r) => !siblings.includes(r)));
    c.compare.replaceChildren(...[...groups, ["Another run", others]].filter(([, list]) => list.length).flatMap(([label, list]) => {
      const made = list.map(([value, text]) => h("option", { value }, text));
      return label ? [h("optgroup", { label }, ...made)] : made;
    }));
    c.compare.value = state.compare;
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
    const other = this.isDifference ? null : this.beside, { run } = this, { layers } = run;
    if (all) {
      this.width = this.root.clientWidth;
      this.legend(centre, half);
      p.second.hidden = !other;
      drawMap(p.map, values, state.order, colours, centre, half);
      if (other) drawMap(p["map-other"], other, state.order, colours, centre, half);
      p.sides[0].textContent = this.isDifference ? "difference" : state.epoch === null ? "as learnt" : `epoch ${state.epoch}`;
      p.sides[1].textContent = this.other ? (this.siblings.includes(this.other) ? `seed ${this.other.seed}` : "beside it") : state.compare;
      this.depth(values, other, centre, half);
      p.axis.replaceChildren(...[-1, -0.5, 0, 0.5, 1].map((s) => h("span", {}, tick(centre + s * half))));
      const blocks = layers.filter((l, i) => !i || layers[i - 1].block !== l.block).map((l) => [l, layers.filter((m) => m.block === l.block).length]);
      p.blocks.replaceChildren(...blocks.map(([l, n]) => h("span", { style: `flex:${n} 0 0`, title: l.block }, l.block.replace("dense block", "block").replace("transition ", "T").replace("features ", ""))));
    }
    for (const mark of this.marked) {
      mark.style.left = `${(100 * layer.index) / layers.length}%`;
      mark.style.width = `${100 / layers.length}%`;
    }
    const s = values.each[layer.index], part = values.w.subarray(layer.start, layer.start + layer.kernels);
    Object.assign(this, drawGrid(p.grid, part, state.kernel, colours, centre, half));
    p.histogram.replaceChildren(histogramChart(s, other && other.each[layer.index], colours, centre, half));
    p.title.textContent = `Layer ${layer.index + 1} of ${layers.length}: ${layer.name}`;
    this.statistics(s, part, centre);
    this.strongest();
    this.tour();
    this.scores();
    this.comparison();
    this.trials();
    const what = this.isDifference ? "mean difference" : "mean w", above = part.filter((v) => v > centre).length / part.length;
    const about = `Layer ${layer.index + 1} of ${layers.length}, ${this.words(layer)}: ${what} ${fixed(s.mean)}, ${percent(above)} of kernels above ${centre}`;
    const text = state.kernel === null ? `${about}.` : `${about}; ${this.kernelText(state.kernel)}.`;
    if (p.status.textContent !== text) p.status.textContent = text;
    const slide = (box, now, max, words) => Object.entries({ "aria-valuemin": 0, "aria-valuemax": max, "aria-valuenow": now, "aria-valuetext": words }).forEach(([k, v]) => box.setAttribute(k, v));
    slide(p.mapBox, layer.index, layers.length - 1, about);
    slide(p.gridBox, state.kernel || 0, layer.kernels - 1, state.kernel === null ? "no kernel chosen" : this.kernelText(state.kernel));
    p.facts.textContent = `${run.facts} On this page w is kept to within ${run.precision.toPrecision(1)}.`.trim();
    const names = FIELDS.map(([key]) => (key === "seed" && run.seed ? `seed ${run.seed}` : run[key]));
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

  /** What it is, and the guided start. A view that is on the screen is pressed, and its sentence is there. */
  tour() {
    const { parts: p, run, state } = this, [first, second] = run.sources;
    p.lede.textContent = `Every kernel of the merged network mixes the same kernel of two networks: the share w from ${first}, the rest from ${second}. Each w starts at 0.5 and is learnt. A column of the map is a layer, from the input on the left, and in it each kernel has the colour of its w.`;
    const views = TOUR.map(([name, of, says]) => [name, of(this), says]).filter(([, wanted]) => wanted);
    const now = views.find(([, wanted]) => wanted.compare === state.compare && !this.isDifference);
    const text = now ? now[2](this) : "";
    if (p.note.textContent !== text) p.note.textContent = text;
    while (p.tour.children.length > views.length) p.tour.lastChild.remove();
    while (p.tour.children.length < views.length) p.tour.append(h("button", { type: "button" }));
    views.forEach((view, i) => { // the same buttons, so that the focus stays
      const button = p.tour.children[i], [name, wanted] = view;
      button.textContent = `${i + 1}  ${name}`;
      button.setAttribute("aria-pressed", view === now);
      button.onclick = () => this.update({ ...wanted, order: "number", epoch: null, ...(this.isDifference ? { view: "w" } : {}) });
    });
  },

  /** Mean and spread by depth, and how far w could go. */
  depth(values, other, centre, half) {
    const { parts: p, run } = this, budget = this.isDifference ? 0 : run.budget, inside = budget > half && budget < 8 * half;
    const most = inside ? 1.08 * budget : half, digits = most > 0.1 ? 2 : 3;
    p.depth.replaceChildren(depthChart(values, other, budget < most ? budget : 0, centre, most), this.marked[2]);
    p.scale.replaceChildren(...[most, 0, -most].map((v) => h("span", {}, fixed(centre + v, digits))));
    const limit = !budget ? "" : ` ${budget < most ? "Dashed, at" : "Beyond the chart, at"} ±${fixed(budget, 2)} of 0.5: w’s budget, its learning rate × steps.`;
    const line = other ? ` Dotted: the mean of ${this.besideName}.` : "";
    p.limits.textContent = `Each layer’s mean, and the band that holds 5 to 95 % of its kernels.${line}${limit}`;
  },

  /** The record's controls: the score with w replaced, without training. */
  scores() {
    const { parts: p, run } = this, { controls } = run;
    p.worth.hidden = !controls.length;
    if (!controls.length || p.scores.run_ === run) return;
    p.scores.run_ = run;
    const all = controls.flatMap(([, scores]) => scores), low = Math.min(...all), high = Math.max(...all), learnt = mean(controls[0][1]);
    const strip = (scores) => h("td", { class: "mm-strip", "aria-hidden": "true" }, h("div", {}, ...scores.map((v) => h("i", { style: `left:${(100 * (v - low)) / (high - low || 1)}%` })),
      h("b", { style: `left:${(100 * (learnt - low)) / (high - low || 1)}%` })));
    const rows = controls.map(([name, scores, again]) => [CONTROLS[name](run.sources), strip(scores), fixed(mean(scores)), name === "learnt" ? "" : signed(mean(scores) - learnt), fixed(again)]);
    p.scores.replaceChildren(
      h("p", { class: "mm-caption" }, `Validation ${run.metric} of the network as its linear probe left it, without training. A dot a draw, the line is w as learnt. “Re-estimated” measures batch norm’s statistics again, so that no value of w suffers from statistics of another.`),
      scrolling("Scores with w replaced", ["w is …", "", run.metric, "minus learnt", "re-estimated"], rows));
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
    const { run, state } = this, { w } = this.values, key = `${state.run} ${state.epoch}`;
    if (this.strongestOf === key) return; // a click on one of the buttons keeps its focus
    this.strongestOf = key;
    const ranked = Uint32Array.from(w, (_, i) => i).sort((a, b) => w[b] - w[a] || a - b);
    const table = (source, list) => h("table", {}, h("caption", {}, `Most ${source}`),
      h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "kernel"), h("th", { scope: "col" }, "w"))),
      h("tbody", {}, ...list.map((at) => {
        const layer = run.layers.findLast((one) => one.start <= at), kernel = at - layer.start;
        return h("tr", {}, h("td", {}, h("button", { type: "button", onclick: () => this.update({ layer: layer.name, kernel }) }, `${layer.name}, ${kernel}`)), h("td", {}, fixed(w[at])));
      }), ...(list.length ? [] : [h("tr", {}, h("td", { colspan: 2 }, "no kernel on this side of 0.5"))])));
    const ends = [[...ranked.slice(0, 6)].filter((at) => w[at] > 0.5), [...ranked.slice(-6)].reverse().filter((at) => w[at] < 0.5)];
    this.parts.strongest.replaceChildren(...ends.map((list, i) => table(run.sources[i], list)));
  },

  comparison() {
    const { parts: p, other, layer, run, values: a, beside: b } = this;
    p.compared.hidden = !b;
    if (!b) return;
    const means = (v) => v.each.map((s) => s.mean), [mine, theirs] = [a, b].map((v) => v.each[layer.index].own), { half } = this.data;
    const rows = [["this layer’s kernels", mine, theirs], ["all kernels", a.w, b.w], ["layers’ means", means(a), means(b)]].map(([name, x, y]) => {
      const away = Array.from(x, (v, i) => v - y[i]), side = Array.from(x, (v, i) => v > 0.5 === y[i] > 0.5).filter(Boolean).length / away.length;
      return [name, fixed(correlation(x, y), 2), signed(mean(away)), fixed(mean(away.map(Math.abs))), percent(side)];
    });
    const apart = other && run.sources.join() !== other.sources.join() ? ` Its sources are ${other.sources.join(" (w = 1) and ")} (w = 0).` : "";
    p.comparison.replaceChildren(
      h("p", { class: "mm-caption" }, `This run minus ${this.besideName}${other ? ", as learnt" : ""}.${apart}`),
      scrolling("Comparison", ["", "correlation", "mean difference", "mean |difference|", "same side of 0.5"], rows),
      h("figure", { class: "mm-scatter" }, scatterChart(mine, theirs, 0.5, half), h("figcaption", {}, `This layer’s kernels: ${this.besideName} (across) and this run (up), both ${tick(0.5 - half)} to ${tick(0.5 + half)}.`)));
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
    const rows = known.filter((one) => "score" in one).map((one) => [one.w === null ? "every layer" : one.layer, name(one.w), fixed(one.score), gap(one)]);
    p.trial.replaceChildren(
      h("h2", {}, "What if"),
      h("p", { class: "mm-caption" }, `Validation ${about.metric}, on ${count(about.images)} images, of the network as its linear probe left it, with w of one layer’s kernels replaced. The test images are not used.`),
      ...(live ? [h("div", { class: "mm-controls", role: "group", "aria-label": `w of all kernels of ${layer.name}` }, h("span", {}, `w of ${layer.name}:`), ...buttons), (this.said ||= h("p", { role: "status" }))] : []),
      ...(rows.length ? [scrolling("Validation scores", ["layer", "w", `validation ${about.metric}`, "against learnt"], rows)] : []));
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
