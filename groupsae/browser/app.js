// The browser of latents. Everything that comes from a model or a text is set as text, never as HTML.
"use strict";

const groupsae = (() => {
  const $ = (id) => document.getElementById(id);
  const data = new Map(); // name of a file of data -> its value
  const waiting = new Map(); // name -> promise while its script loads
  const state = { dictionary: 0, layer: -1, latent: null, query: "", where: "all", sort: "number", down: false, filters: {} };
  const ROW = 46;
  let run, tokens, view = [], place = -1, columns = null;

  // ---- data: scripts that hand over one value each

  function receive(name, value) { data.set(name, value); }

  function load(name) {
    if (data.has(name)) return Promise.resolve(data.get(name));
    if (!waiting.has(name)) {
      waiting.set(name, new Promise((done, fail) => {
        const script = document.createElement("script");
        script.src = `data/${name}.js`;
        script.onload = () => { script.remove(); done(data.get(name)); };
        script.onerror = () => { waiting.delete(name); fail(new Error(`data/${name}.js cannot be read`)); };
        document.head.append(script);
      }));
    }
    return waiting.get(name);
  }

  const KINDS = { u1: Uint8Array, u2: Uint16Array, u4: Uint32Array, f4: Float32Array };

  function unpacked(column) {
    const text = atob(column.data), bytes = new Uint8Array(text.length);
    for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
    return new KINDS[column.type](bytes.buffer);
  }

  // ---- numbers of all latents of one dictionary

  class Columns {
    constructor(dictionary, value) {
      this.dictionary = dictionary;
      this.explained = value.explained;
      this.size = dictionary.d_sae;
      this.layers = dictionary.layers.length;
      this._packed = value.columns;
      this._made = new Map();
    }
    raw(name) {
      if (!this._made.has(name)) this._made.set(name, this._packed[name] ? unpacked(this._packed[name]) : null);
      return this._made.get(name);
    }
    // How often a latent fires: at one layer, or the mean over all (layer -1).
    rate(latent, layer) {
      const count = this.raw("count");
      if (layer >= 0) return count[layer * this.size + latent] / run.num_tokens;
      let sum = 0;
      for (let l = 0; l < this.layers; l++) sum += count[l * this.size + latent];
      return sum / this.layers / run.num_tokens;
    }
    peak(latent, layer) {
      const peak = this.raw("peak");
      if (layer >= 0) return peak[layer * this.size + latent];
      let most = 0;
      for (let l = 0; l < this.layers; l++) most = Math.max(most, peak[l * this.size + latent]);
      return most;
    }
    score(name, latent, layer) {
      const codes = this.raw(name);
      let sum = 0, known = 0;
      for (let l = Math.max(layer, 0); l < (layer >= 0 ? layer + 1 : this.layers); l++) {
        const code = codes[l * this.size + latent];
        if (code !== 255) { sum += code / 254; known++; }
      }
      return known ? sum / known : NaN;
    }
    profile(latent) {
      const count = this.raw("count");
      return Array.from({ length: this.layers }, (_, l) => count[l * this.size + latent]);
    }
    evenness(latent) {
      const counts = this.profile(latent), total = counts.reduce((a, b) => a + b, 0);
      if (!total || this.layers < 2) return NaN;
      let sum = 0;
      for (const count of counts) if (count) sum -= (count / total) * Math.log(count / total);
      return sum / Math.log(this.layers);
    }
    meanLayer(latent) {
      const counts = this.profile(latent), total = counts.reduce((a, b) => a + b, 0);
      return total ? counts.reduce((sum, count, l) => sum + count * l, 0) / total : NaN;
    }
    // Ids of the tokens it fires on most: at one layer, or at the layer where it fires most.
    tokens(latent, layer) {
      const ids = this.raw("tokens"), width = ids.length / (this.layers * this.size);
      if (layer < 0) {
        const counts = this.profile(latent);
        layer = counts.indexOf(Math.max(...counts));
      }
      const start = (layer * this.size + latent) * width;
      return Array.from(ids.subarray(start, start + width)).filter(Boolean).map((id) => id - 1);
    }
  }

  // Each metric by name, for all latents at the chosen layer; computed once.
  function metrics() {
    const several = columns.layers > 1;
    return [
      { name: "number", title: "number, or match", of: (i) => i },
      { name: "rate", title: "firing rate, %", of: (i, l) => 100 * columns.rate(i, l) },
      { name: "peak", title: "largest value", of: (i, l) => columns.peak(i, l) },
      ...(several ? [
        { name: "evenness", title: "evenness over layers", of: (i) => columns.evenness(i) },
        { name: "mean_layer", title: "mean layer", of: (i) => columns.meanLayer(i) },
        { name: "num_layers", title: "layers where it fires", of: (i) => columns.profile(i).filter(Boolean).length },
      ] : []),
      ...run.scores.map((score) => ({ name: score.name, title: score.title, of: (i, l) => columns.score(score.name, i, l) })),
      { name: "context_gain", title: "context adds (AUROC)", of: (i, l) => columns.score("surface_auroc", i, l) - columns.score("token_auroc", i, l) },
    ];
  }

  const cached = new Map();
  function values(metric) {
    const key = `${state.dictionary} ${state.layer} ${metric.name}`;
    if (!cached.has(key)) {
      const found = new Float64Array(columns.size);
      for (let i = 0; i < columns.size; i++) found[i] = metric.of(i, state.layer);
      if (cached.size > 40) cached.clear();
      cached.set(key, found);
    }
    return cached.get(key);
  }

  // ---- search

  let lower = null, matched = null; // the tokens in lower case; a rank for each that was searched for
  function matchingTokens(query) {
    if (!lower) lower = tokens.map((token) => token.toLowerCase());
    const word = query.toLowerCase(), bare = word.trim(), rank = new Uint8Array(tokens.length + 1);
    for (let id = 0; id < lower.length; id++) {
      if (lower[id].includes(word)) rank[id + 1] = lower[id].trim() === bare ? 2 : 1;
    }
    return rank;
  }

  // A rank for each latent: 0 is not found, larger is nearer to what was asked.
  function searched() {
    const query = state.query;
    matched = null;
    if (!query.trim()) return null;
    const rank = new Float32Array(columns.size), where = state.where;
    const number = /^#?\d+$/.test(query.trim()) ? Number(query.trim().replace("#", "")) : null;
    if (where === "explained" || where === "all") {
      const word = query.trim().toLowerCase();
      for (const [latent, text] of Object.entries(columns.explained)) {
        if (text.toLowerCase().includes(word)) rank[latent] = Math.max(rank[latent], 30);
      }
    }
    const found = where === "explained" ? null : matchingTokens(query);
    matched = found;
    if (found && where !== "promotes") rankTokens(rank, found, columns.raw("tokens"), 10);
    if (found && where !== "fires" && columns.raw("promoted")) rankTokens(rank, found, columns.raw("promoted"), where === "promotes" ? 10 : 1);
    if (number !== null && number < columns.size && where === "all") rank[number] = 1000;
    return rank;
  }

  function rankTokens(rank, found, ids, weight) {
    const size = columns.size, perLayer = ids.length % (size * columns.layers) === 0 && ids === columns.raw("tokens");
    const layers = perLayer ? columns.layers : 1, width = ids.length / (size * layers);
    const from = perLayer && state.layer >= 0 ? state.layer : 0, to = perLayer && state.layer >= 0 ? state.layer + 1 : layers;
    for (let l = from; l < to; l++) {
      for (let i = 0, at = l * size * width; i < size; i++) {
        for (let k = 0; k < width; k++, at++) {
          const hit = found[ids[at]];
          if (hit) { const value = (weight * hit) / (1 + k); if (value > rank[i]) rank[i] = value; }
        }
      }
    }
  }

  // Why a row is there whose own tokens do not show it: the token it promotes that was searched for.
  function promotedMatch(latent) {
    const ids = columns.raw("promoted"), width = ids ? ids.length / columns.size : 0;
    if (!matched || state.where === "fires" || columns.tokens(latent, state.layer).some((id) => matched[id + 1])) return [];
    const id = Array.from(ids.subarray(latent * width, (latent + 1) * width)).find((one) => matched[one]);
    return id ? [el("span", "muted", "promotes "), token(id - 1), el("span", "muted", " · ")] : [];
  }

  function refresh() {
    const began = performance.now(), rank = searched(), all = metrics();
    const bounds = all.filter((metric) => state.filters[metric.name]).map((metric) => [values(metric), ...state.filters[metric.name]]);
    view = [];
    for (let i = 0; i < columns.size; i++) {
      if (rank && !rank[i]) continue;
      if (bounds.every(([found, low, high]) => (low === null || found[i] >= low) && (high === null || found[i] <= high))) view.push(i);
    }
    const metric = all.find((one) => one.name === state.sort) || all[0];
    const by = metric.name === "number" && rank ? rank : values(metric);
    const sign = (metric.name === "number" && rank) || state.down ? -1 : 1;
    if (metric.name !== "number" || rank || state.down) {
      view.sort((a, b) => {
        const x = by[a], y = by[b];
        if (x !== x || y !== y) return (x !== x) - (y !== y) || a - b; // what is unknown comes last
        return sign * (x - y) || a - b;
      });
    }
    document.documentElement.dataset.searchMs = (performance.now() - began).toFixed(1);
    $("found").textContent = view.length === columns.size ? `${number(columns.size)} latents` : `${number(view.length)} of ${number(columns.size)} latents`;
    $("space").style.height = `${view.length * ROW}px`;
    place = view.indexOf(state.latent);
    draw(true);
  }

  // ---- the list: only the rows that can be seen exist

  function draw(again) {
    const list = $("list"), first = Math.max(0, Math.floor(list.scrollTop / ROW) - 4);
    const last = Math.min(view.length, first + Math.ceil((list.clientHeight || 900) / ROW) + 8);
    if (!again && draw.first === first && draw.last === last) return;
    [draw.first, draw.last] = [first, last];
    $("rows").style.transform = `translateY(${first * ROW}px)`;
    $("rows").replaceChildren(...view.slice(first, last).map(row));
  }

  function row(latent) {
    const counts = columns.profile(latent), silent = counts.every((count) => !count);
    const what = el("span", "what");
    if (columns.explained[latent] !== undefined) what.append(columns.explained[latent]);
    else if (silent) what.append("never fires");
    else what.append(...promotedMatch(latent), ...columns.tokens(latent, state.layer).slice(0, 4).map((id) => token(id)));
    const right = el("span", "right");
    if (columns.layers > 1) right.append(strip(counts, 64, 20, state.layer));
    right.append(el("span", "", silent ? "" : percent(columns.rate(latent, state.layer))));
    const link = el("a", "row" + (silent ? " silent" : ""));
    link.href = address({ latent });
    link.setAttribute("role", "option");
    link.setAttribute("aria-selected", String(latent === state.latent));
    link.tabIndex = -1;
    link.append(el("span", "number", String(latent)), what, right);
    return link;
  }

  function keepInSight() {
    const list = $("list");
    if (place < 0) return;
    if (place * ROW < list.scrollTop || (place + 1) * ROW > list.scrollTop + list.clientHeight) {
      list.scrollTop = place * ROW - list.clientHeight / 2 + ROW;
    }
    draw(true);
  }

  // ---- small parts

  function el(tag, kind, text) {
    const made = document.createElement(tag);
    if (kind) made.className = kind;
    if (text !== undefined) made.textContent = text;
    return made;
  }
  function svg(tag, attributes, ...children) {
    const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.append(...children);
    return made;
  }
  // Line ends and tabs by signs; long runs of spaces by their number.
  const shown = (text) => text.replace(/ {3,}/g, (run) => `␣${run.length}`).replace(/\n/g, "⏎").replace(/\t/g, "⇥").replace(/\r/g, "␍");
  function token(id, kind = "token") {
    const made = el("span", kind, shown(tokens[id] ?? "") || "∅");
    made.dataset.tip = `token ${id}`;
    return made;
  }
  const number = (value) => value.toLocaleString("en-US");
  function short(value) {
    if (value === null || value === undefined || Number.isNaN(value)) return "–";
    return Math.abs(value) >= 1000 ? number(Math.round(value)) : String(Number(value.toPrecision(3)));
  }
  function percent(share) {
    const value = 100 * share;
    return value === 0 ? "0 %" : `${value >= 10 ? value.toFixed(1) : String(Number(value.toPrecision(2)))} %`;
  }
  const fixed = (value, digits) => (value === null || value === undefined || Number.isNaN(value) ? "–" : value.toFixed(digits));
  function meter(share, hot) {
    const outer = el("span", hot ? "meter hot" : "meter"), inner = el("i");
    inner.style.width = `${100 * Math.max(0, Math.min(1, share))}%`;
    outer.append(inner);
    return outer;
  }
  // A bar per layer: how often it fires there, by the layer where it fires most.
  function strip(counts, width, height, here) {
    const most = Math.max(1, ...counts), step = width / counts.length, gap = step > 3 ? 1 : 0;
    const drawing = svg("svg", { class: "bars", width, height, viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" });
    counts.forEach((count, layer) => {
      const bar = (count / most) * (height - 1);
      drawing.append(svg("rect", { class: "base", x: layer * step, y: height - 1, width: step - gap, height: 1 }));
      if (count) drawing.append(svg("rect", { class: layer === here ? "here" : "", x: layer * step, y: height - Math.max(bar, 1.5), width: step - gap, height: Math.max(bar, 1.5) }));
    });
    return drawing;
  }
  function histogram(counts, peak) {
    const width = 320, height = 110, bottom = 92, step = width / counts.length, most = Math.log10(1 + Math.max(...counts));
    const drawing = svg("svg", { class: "histogram", width: "100%", viewBox: `0 0 ${width} ${height}`, style: "max-width:26rem", role: "img", "aria-label": "Histogram of values" });
    counts.forEach((count, bin) => {
      const bar = count ? Math.max(2, (Math.log10(1 + count) / most) * (bottom - 4)) : 0;
      const box = svg("rect", { x: bin * step + 0.5, y: bottom - bar, width: step - 1, height: bar });
      box.dataset.tip = `${number(count)} firings from ${short((bin / counts.length) * peak)} to ${short(((bin + 1) / counts.length) * peak)}`;
      drawing.append(box);
    });
    drawing.append(svg("line", { x1: 0, x2: width, y1: bottom + 0.5, y2: bottom + 0.5 }));
    const label = (x, anchor, text) => svg("text", { x, y: height - 4, "text-anchor": anchor }, text);
    drawing.append(label(0, "start", "0"), label(width / 2, "middle", short(peak / 2)), label(width, "end", short(peak)));
    return drawing;
  }
  function section(title, ...children) {
    const made = el("section");
    if (title) made.append(el("h2", "", title));
    made.append(...children.filter(Boolean));
    return made;
  }
  function items(rows) {
    const list = el("ul", "list");
    for (const [what, share, text, hot] of rows) {
      const item = el("li");
      const cell = el("span");
      cell.append(what);
      item.append(cell, meter(share, hot), el("span", "value", text));
      list.append(item);
    }
    return list;
  }

  // ---- a latent

  const layerName = (dictionary, layer) => dictionary.layers[layer];
  const title = (dictionary) => `${dictionary.suites.map((name) => ({ baseline: "one SAE per layer" })[name] || name).join(", ")} · ${dictionary.group}`;

  async function show() {
    const dictionary = run.dictionaries[state.dictionary], main = $("main"), latent = state.latent;
    document.title = latent === null ? `${run.name} · latents` : `${latent} · ${dictionary.group} · ${run.name}`;
    if (latent === null) return main.replaceChildren(...welcome(dictionary));
    if (!Number.isInteger(latent) || latent < 0 || latent >= dictionary.d_sae) {
      return main.replaceChildren(wrong(`There is no latent ${state.asked ?? latent} in ${title(dictionary)}: it has 0 to ${dictionary.d_sae - 1}.`));
    }
    let found;
    try {
      found = (await load(`${state.dictionary}/${Math.floor(latent / run.per_file)}`))[latent % run.per_file];
      const files = new Set(found.layers.flatMap((one) => one.windows.map((window) => textFile(window[0]))));
      await Promise.all([...files].map(load));
    } catch (error) {
      return main.replaceChildren(wrong(`${error.message}. Copy the whole folder, or write it again with \`groupsae browse\`.`));
    }
    if (state.latent !== latent || run.dictionaries[state.dictionary] !== dictionary) return undefined; // another was asked for meanwhile
    main.replaceChildren(...page(dictionary, latent, found));
    document.documentElement.dataset.shown = `${state.dictionary}/${latent}`;
    for (const next of [view[place + 1], view[place - 1]]) if (next !== undefined) load(`${state.dictionary}/${Math.floor(next / run.per_file)}`).catch(() => {});
    return undefined;
  }

  function wrong(text) { return el("p", "empty wrong", text); }

  function welcome(dictionary) {
    const facts = el("p", "note", `${number(dictionary.d_sae)} latents at ${dictionary.layers.length === 1 ? dictionary.layers[0] : `${dictionary.layers.length} layers`}. ` +
      (dictionary.silent ? `${number(dictionary.silent)} of them fire on none of the ${number(run.num_tokens)} tokens that were read.` : `All of them fire on the ${number(run.num_tokens)} tokens that were read.`));
    const hint = el("p", "empty", "Choose a latent from the list, search for a token, or press r for one at random. Press ? for all keys.");
    return [el("h1", "", title(dictionary)), facts, hint];
  }

  function page(dictionary, latent, found) {
    const several = found.layers.length > 1;
    let layer = state.layer;
    if (layer < 0) layer = found.layers.reduce((best, one, index) => (one.count > found.layers[best].count ? index : best), 0);
    const at = found.layers[layer], fires = found.layers.some((one) => one.count);
    const parts = [head(dictionary, latent), explanation(found, layer), facts(dictionary, found, layer)];
    if (!fires) parts.push(el("p", "empty", `This latent never fires: on none of the ${number(run.num_tokens)} tokens that were read${several ? ", at no layer of its group" : ""}. What it would promote is known from its decoder row alone.`));
    if (fires && several) parts.push(layers(dictionary, found, layer));
    if (fires) parts.push(contexts(dictionary, at, layer, several));
    parts.push(tokensOf(found, at), neighbors(dictionary, found, at, layer));
    return parts.filter(Boolean);
  }

  function head(dictionary, latent) {
    const made = el("div", "head"), buttons = el("div", "spread");
    const step = (text, by, tip) => {
      const button = el("button", "", text);
      button.disabled = place < 0 ? !view.length : view[place + by] === undefined;
      button.title = tip;
      button.onclick = () => move(by);
      return button;
    };
    const copy = el("button", "", "Copy link");
    copy.onclick = () => navigator.clipboard?.writeText(location.href).then(() => { copy.textContent = "Copied"; setTimeout(() => { copy.textContent = "Copy link"; }, 1200); });
    const help = el("button", "", "?");
    help.title = "Keys";
    help.onclick = () => $("help").showModal();
    buttons.append(step("← k", -1, "The latent before in the list"), step("j →", 1, "The next latent of the list"), copy, help);
    made.append(el("h1", "", `Latent ${latent}`), el("span", "muted", title(dictionary)), buttons);
    return made;
  }

  function explanation(found, layer) {
    const known = found.layers[layer].explanation || found.layers.map((one) => one.explanation).find(Boolean);
    if (!known) return null;
    const made = el("p", "explanation", known.text), scores = ["detection", "fuzzing"].filter((name) => known[name] !== undefined);
    if (scores.length) made.append(" ", el("small", "", scores.map((name) => `${name} ${percent(known[name])}`).join(", ")));
    return made;
  }

  function facts(dictionary, found, layer) {
    const at = found.layers[layer], list = el("dl", "facts");
    const add = (value, name, meaning) => {
      const box = el("div"), term = el("dt", meaning ? "" : "plain", name);
      if (meaning) term.dataset.tip = meaning;
      box.append(term, el("dd", "", value));
      list.append(box);
    };
    if (found.layers.length > 1) add(layerName(dictionary, layer), "layer shown");
    add(percent(at.count / run.num_tokens), "of tokens", `It fires on ${number(at.count)} of ${number(run.num_tokens)} tokens.`);
    add(short(at.peak), "largest value");
    add(short(at.mean), "mean where it fires");
    if (found.layers.length > 1) add(fixed(columns.evenness(state.latent), 2), "evenness over layers", "Entropy of its firings over the layers of the group: 0 is one layer only, 1 all layers alike.");
    run.scores.forEach((score, index) => add(fixed(at.scores[index], 2), score.title, score.meaning));
    return list;
  }

  function layers(dictionary, found, layer) {
    const most = Math.max(...found.layers.map((one) => one.count)), strongest = Math.max(...found.layers.map((one) => one.mean));
    const table = el("table"), first = el("tr");
    for (const name of ["layer", "fires on", "", "mean value", "", `same tokens as ${layerName(dictionary, layer)}`, "", "tokens there"]) first.append(el("th", "", name));
    table.append(el("thead"), el("tbody"));
    table.tHead.append(first);
    found.layers.forEach((one, index) => {
      const line = el("tr", index === layer ? "layer here" : "layer"), cell = (content, kind) => { const made = el("td", kind); made.append(content); line.append(made); };
      cell(layerName(dictionary, index));
      cell(meter(one.count / most, index === layer), "bar");
      cell(one.count ? percent(one.count / run.num_tokens) : "silent");
      cell(meter(one.mean / strongest, index === layer), "bar");
      cell(one.count ? short(one.mean) : "");
      const overlap = found.layers[layer].overlap[index];
      cell(overlap === null ? "" : meter(overlap), "bar");
      cell(overlap === null ? "" : fixed(overlap, 2));
      const cells = el("span");
      cells.append(...one.tokens.slice(0, 3).map(([id]) => token(id)));
      cell(cells);
      line.onclick = () => go({ layer: index });
      table.tBodies[0].append(line);
    });
    const scroll = el("div", "scroll");
    scroll.append(table);
    return section("Where in its group it fires", el("p", "note", "Same tokens: of the tokens on which it fires at one of two layers, the share on which it fires at both (Jaccard index). Click a layer to see its contexts."), scroll);
  }

  function contexts(dictionary, at, layer, several) {
    const where = several ? ` at ${layerName(dictionary, layer)}` : "";
    if (!at.count) return section(`Contexts${where}`, el("p", "empty", `It does not fire${where}, on none of the ${number(run.num_tokens)} tokens that were read.`));
    const made = at.windows.map((window) => [window, line(window, idsOf(window), at.peak)]);
    const list = (rows) => { const all = el("ol", "windows"); all.append(...rows.map((row) => row[1])); return all; };
    const top = made.filter(([window]) => window[2] !== null && window[2] !== 255), others = made.filter(([window]) => window[2] === null);
    return section(`Contexts${where}`, list(top), others.length ? el("p", "part", "From the rest, one of each quantile, the strongest first") : null, others.length ? list(others) : null);
  }

  const textFile = (row) => `text/${Math.floor(row / run.rows_per_file)}`;
  const rows = new Map(); // name of a file of text -> its tokens, plus one
  function idsOf([row, first]) {
    const name = textFile(row), start = (row % run.rows_per_file) * run.row_tokens + first;
    if (!rows.has(name)) rows.set(name, unpacked(data.get(name)));
    return rows.get(name).subarray(start, start + run.window);
  }

  function line(window, ids, peak) {
    const item = el("li"), code = el("code"), [row, first, , quantile, ...pairs] = window, value = new Map();
    for (let i = 0; i < pairs.length; i += 2) value.set(pairs[i], pairs[i + 1]);
    ids.forEach((id, index) => {
      const text = tokens[id - 1] ?? "", span = el("span", text.trim() || value.has(index) ? "" : "break", shown(text));
      if (value.has(index)) {
        span.dataset.value = value.get(index);
        span.dataset.tip = `${short(value.get(index))} on token ${id - 1}, position ${first + index}`;
        span.style.setProperty("--heat", (0.12 + 0.68 * Math.min(1, value.get(index) / peak)).toFixed(3));
      }
      code.append(span);
    });
    const most = el("span", "peak", short(Math.max(...value.values())));
    most.dataset.tip = `row ${row}, tokens ${first} to ${first + ids.length - 1}` + (quantile === null ? "" : `; quantile ${quantile + 1} of ${run.quantiles}`);
    item.append(most, code);
    return item;
  }

  function tokensOf(found, at) {
    const grid = el("div", "columns");
    if (at.count) {
      grid.append(section("Fires on", items(at.tokens.map(([id, share]) => [token(id), share, percent(share), true]))));
      grid.append(section("Values", histogram(at.histogram, at.peak), el("p", "note", "Firings by value; heights are logarithms.")));
    }
    if (found.promoted) {
      const list = (pairs) => { const most = Math.max(...pairs.map((pair) => Math.abs(pair[1]))) || 1; return items(pairs.map(([id, logit]) => [token(id), Math.abs(logit) / most, fixed(logit, 2)])); };
      grid.append(section("Promotes", list(found.promoted)), section("Suppresses", list(found.suppressed)));
    }
    return grid;
  }

  function neighbors(dictionary, found, at, layer) {
    const grid = el("div", "columns");
    const own = ([latent, share]) => {
      const link = el("a", "");
      link.href = address({ latent });
      link.append(`${latent} `, ...columns.tokens(latent, state.layer).slice(0, 2).map((id) => token(id)));
      return [link, share, fixed(share, 2)];
    };
    grid.append(section("Nearest by direction", items(found.near.map(own)), el("p", "note", "Cosine of decoder rows in this SAE.")));
    if (at.together.length) grid.append(section("Fires together with", items(at.together.map(own)), el("p", "note", "Jaccard index of the tokens on which they fire.")));
    const others = new Map();
    for (const [index, latent, cosine, ids] of at.others) {
      const link = el("a", "");
      link.href = address({ dictionary: index, latent, layer: -1, query: "", filters: {} });
      link.append(`${latent} `, ...ids.map((id) => token(id)));
      if (!others.has(index)) others.set(index, []);
      others.get(index).push([link, cosine, fixed(cosine, 2), true]);
    }
    for (const [index, rows] of others) grid.append(section(`Nearest in ${title(run.dictionaries[index])}`, items(rows), el("p", "note", `Cosine of decoder rows at ${layerName(dictionary, layer)}.`)));
    return grid;
  }

  // ---- the address: what is seen, to be shared

  function address(change = {}) {
    const now = { ...state, ...change }, dictionary = run.dictionaries[now.dictionary], words = new URLSearchParams();
    words.set("sae", `${dictionary.suite}/${dictionary.group}`);
    if (now.latent !== null) words.set("latent", now.latent);
    if (now.layer >= 0) words.set("layer", dictionary.layers[now.layer]);
    if (now.query) words.set("q", now.query);
    if (now.where !== "all") words.set("in", now.where);
    if (now.sort !== "number") words.set("by", now.sort);
    if (now.down) words.set("down", "1");
    for (const [name, [low, high]] of Object.entries(now.filters)) words.set(`f.${name}`, `${low ?? ""}..${high ?? ""}`);
    return `#${words}`;
  }

  function parsed() {
    const words = new URLSearchParams(location.hash.slice(1)), sae = words.get("sae");
    let dictionary = run.dictionaries.findIndex((one) => `${one.suite}/${one.group}` === sae);
    const unknown = sae !== null && dictionary < 0;
    if (dictionary < 0) dictionary = Math.max(0, run.dictionaries.findIndex((one) => one.suite === "groups"));
    const latent = words.get("latent"), filters = {};
    for (const [name, range] of words) {
      if (!name.startsWith("f.")) continue;
      const [low, high] = range.split("..").map((part) => (part === "" || part === undefined || Number.isNaN(Number(part)) ? null : Number(part)));
      if (low !== null || (high ?? null) !== null) filters[name.slice(2)] = [low, high ?? null];
    }
    return {
      unknown: unknown ? sae : null,
      now: {
        dictionary, filters, asked: latent,
        layer: run.dictionaries[dictionary].layers.indexOf(words.get("layer")),
        latent: latent === null ? null : /^\d+$/.test(latent) ? Number(latent) : NaN,
        query: words.get("q") || "", where: words.get("in") || "all", sort: words.get("by") || "number", down: words.get("down") === "1",
      },
    };
  }

  function go(change) {
    const next = address(change);
    if (next === location.hash) return;
    location.hash = next.slice(1);
  }

  function edit(change) { // typed words and filters do not fill the history
    history.replaceState(null, "", address(change));
    follow();
  }

  async function follow() {
    const before = { ...state }, { unknown, now } = parsed();
    Object.assign(state, now);
    const changed = !columns || before.dictionary !== state.dictionary;
    if (changed) {
      try {
        const value = await load(String(state.dictionary));
        columns = new Columns(run.dictionaries[state.dictionary], value);
      } catch (error) { return $("main").replaceChildren(wrong(error.message)); }
      controls();
    }
    const sought = ["layer", "query", "where", "sort", "down"].some((name) => before[name] !== state[name]) || JSON.stringify(before.filters) !== JSON.stringify(state.filters);
    if (changed || sought) { fill(); refresh(); $("list").scrollTop = 0; }
    place = view.indexOf(state.latent);
    if (changed || !sought) keepInSight(); // another order is shown from its beginning
    draw(true);
    if (changed || before.latent !== state.latent || before.layer !== state.layer) { await show(); if (before.latent !== state.latent) window.scrollTo(0, 0); }
    if (unknown) $("main").replaceChildren(wrong(`There is no SAE ${unknown} in this run. Choose one on the left.`));
    return undefined;
  }

  function move(by) {
    const next = place < 0 ? view[by > 0 ? 0 : view.length - 1] : view[place + by];
    if (next !== undefined) go({ latent: next });
  }

  // ---- controls

  function options(select, rows) {
    select.replaceChildren(...rows.map(([value, text]) => { const made = el("option", "", text); made.value = value; return made; }));
  }

  function controls() {
    const dictionary = run.dictionaries[state.dictionary];
    options($("layer"), [[-1, "all layers"], ...dictionary.layers.map((name, index) => [index, name])]);
    $("layer-label").hidden = dictionary.layers.length < 2;
    $("layer-label").style.display = dictionary.layers.length < 2 ? "none" : "";
    options($("sort"), metrics().map((metric) => [metric.name, metric.title]));
    const rows = [];
    for (const metric of metrics().slice(1)) {
      rows.push(el("span", "", metric.title));
      for (const [end, text] of [[0, "from"], [1, "to"]]) {
        const input = el("input");
        Object.assign(input, { type: "number", step: "any", placeholder: text, ariaLabel: `${metric.title} ${text}` });
        input.dataset.metric = metric.name;
        input.dataset.end = end;
        rows.push(input);
      }
    }
    $("filter-rows").replaceChildren(...rows);
  }

  function fill() {
    $("dictionary").value = state.dictionary;
    $("layer").value = state.layer;
    if ($("query").value !== state.query) $("query").value = state.query;
    $("where").value = state.where;
    $("sort").value = state.sort;
    $("order").textContent = state.down ? "↑" : "↓";
    for (const input of $("filter-rows").querySelectorAll("input")) {
      const value = state.filters[input.dataset.metric]?.[input.dataset.end];
      if (document.activeElement !== input) input.value = value ?? "";
    }
    const count = Object.keys(state.filters).length;
    $("filter-count").textContent = count ? `(${count})` : "";
    if (count) $("filters").open = true;
  }

  function filtered() {
    const filters = {};
    for (const input of $("filter-rows").querySelectorAll("input")) {
      if (input.value === "" || Number.isNaN(Number(input.value))) continue;
      (filters[input.dataset.metric] ??= [null, null])[input.dataset.end] = Number(input.value);
    }
    edit({ filters });
  }

  function listen() {
    $("dictionary").onchange = (event) => go({ dictionary: Number(event.target.value), layer: -1, latent: null, filters: {} });
    $("layer").onchange = (event) => go({ layer: Number(event.target.value) });
    $("query").oninput = (event) => edit({ query: event.target.value });
    $("query").onkeydown = (event) => {
      if (event.key === "Enter" && view.length) go({ latent: view[0] });
      if (event.key === "Enter" || event.key === "Escape") event.target.blur();
    };
    $("where").onchange = (event) => edit({ where: event.target.value });
    $("sort").onchange = (event) => edit({ sort: event.target.value, down: event.target.value !== "number" });
    $("order").onclick = () => edit({ down: !state.down });
    $("filter-rows").oninput = filtered;
    $("list").addEventListener("scroll", () => draw(false), { passive: true });
    window.addEventListener("resize", () => draw(true));
    window.addEventListener("hashchange", follow);
    document.addEventListener("keydown", keys);
    document.addEventListener("mouseover", tip);
    document.addEventListener("focusin", tip);
  }

  function keys(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) return;
    const several = columns.layers;
    const actions = {
      j: () => move(1), k: () => move(-1), ArrowDown: event.target.id === "list" ? () => move(1) : null, ArrowUp: event.target.id === "list" ? () => move(-1) : null,
      "/": () => $("query").select(), "?": () => $("help").showModal(), t: theme,
      r: () => view.length && go({ latent: view[Math.floor(Math.random() * view.length)] }),
      "]": () => several > 1 && go({ layer: Math.min(several - 1, state.layer + 1) }), "[": () => several > 1 && go({ layer: Math.max(-1, state.layer - 1) }),
    };
    if (actions[event.key]) { event.preventDefault(); actions[event.key](); }
  }

  function theme() {
    const root = document.documentElement, dark = getComputedStyle(root).colorScheme === "dark";
    root.dataset.theme = dark ? "light" : "dark";
    try { localStorage.setItem("groupsae-theme", root.dataset.theme); } catch { /* a file may have no storage */ }
  }

  function tip(event) {
    const what = event.target.closest?.("[data-tip]"), box = $("tip");
    box.hidden = !what;
    if (!what) return;
    box.textContent = what.dataset.tip;
    const at = what.getBoundingClientRect();
    box.style.left = `${Math.max(4, Math.min(at.left, innerWidth - box.offsetWidth - 8))}px`;
    box.style.top = `${at.top - box.offsetHeight - 6 > 0 ? at.top - box.offsetHeight - 6 : at.bottom + 6}px`;
  }

  async function start() {
    try { document.documentElement.dataset.theme = localStorage.getItem("groupsae-theme") || ""; } catch { /* no storage */ }
    try {
      [run, tokens] = await Promise.all([load("run"), load("tokens")]);
    } catch (error) {
      return $("main").replaceChildren(wrong(`${error.message}. Copy the whole folder, or write it again with \`groupsae browse\`.`));
    }
    $("run-name").textContent = run.name;
    $("run-facts").textContent = `${run.model} · ${number(run.num_tokens)} ${run.text} tokens`;
    if (run.report) { const link = el("a", "", "report"); link.href = "../report/index.html"; $("run-facts").append(" · ", link); }
    options($("dictionary"), run.dictionaries.map((one, index) => [index, title(one)]));
    listen();
    await follow();
    document.documentElement.dataset.readyMs = performance.now().toFixed(0);
    setTimeout(() => { matchingTokens(" "); columns?.raw("tokens"); columns?.raw("promoted"); }, 50); // ready for the first search
    return undefined;
  }

  start();
  return { receive };
})();
