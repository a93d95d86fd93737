"use strict";
// The comparison is in the page's data; nothing is fetched. State lies in `state`, `draw` shows it.
const data = JSON.parse(document.getElementById("data").textContent);
const find = (id) => document.getElementById(id);
const ACROSS = 16;
const NATURAL = "#0072B2", ADVERSARIAL = "#D55E00";

function decode(text, Type = Float32Array) {
  const bytes = Uint8Array.from(atob(text), (sign) => sign.charCodeAt(0));
  return new Type(bytes.buffer);
}

for (const model of data.models) {
  for (const layer of model.layers) {
    layer.relevance = decode(layer.relevance);
    for (const kind of ["natural", "adversarial"])
      for (const name of ["magnitude", "frequency"]) layer[kind][name] = decode(layer[kind][name]);
    if (layer.strengths) layer.strengths = decode(layer.strengths);
  }
  const samples = model.samples;
  if (samples)
    for (const name of ["natural", "adversarial", "weight", "bias"]) samples[name] = decode(samples[name]);
}

// ---------------------------------------------------------------- state

const state = {
  model: Math.max(0, data.models.findIndex((model) => model.label === data.start.model)),
  layer: 0, other: -1, row: 0, order: data.start.order, mode: "pin", by: "activation",
  strength: data.strengths.length, pinned: [], silenced: {}, restored: {}, pointed: null,
};
state.layer = Math.max(0, model().layers.findIndex((layer) => layer.name === data.start.layer));
state.row = Math.max(0, data.shown.indexOf(data.classes.indexOf(data.start.class_name)));

function model(index = state.model) { return data.models[index]; }
function layerOf(index) {
  if (index === state.model) return model().layers[state.layer];
  return matchOf(index)?.layer ?? data.models[index].layers.at(-1);
}
function place(index) { return `${index}/${layerOf(index).name}`; }
function chosen(kind, index) { return (state[kind][place(index)] ??= new Set()); }

// Pairs of channels of the first network's layer and another's, from the table of matches.
function matchOf(index) {
  const own = model().layers[state.layer].name;
  for (const [first, firstLayer, second, secondLayer, pairs, correlations] of data.matched) {
    const turned = second === model().label && first === data.models[index].label;
    if (!turned && !(first === model().label && second === data.models[index].label)) continue;
    if ((turned ? secondLayer : firstLayer) !== own) continue;
    const name = turned ? firstLayer : secondLayer;
    const layer = data.models[index].layers.find((one) => one.name === name);
    if (!layer) continue;
    const partner = new Map(), correlation = new Map();
    pairs.forEach(([a, b], at) => {
      partner.set(turned ? b : a, turned ? a : b);
      correlation.set(turned ? b : a, correlations[at]);
    });
    return { layer, partner, correlation };
  }
  return null;
}

// ---------------------------------------------------------------- numbers

const at = (array, layer, channel) => array[state.row * layer.channels + channel];

function adversarialMagnitude(layer, channel) {
  const { strength } = state;
  if (strength >= data.strengths.length || !layer.strengths) return at(layer.adversarial.magnitude, layer, channel);
  return layer.strengths[(strength * data.shown.length + state.row) * layer.channels + channel];
}

function describe(layer, channel) {
  const natural = at(layer.natural.magnitude, layer, channel);
  const adversarial = adversarialMagnitude(layer, channel);
  return { channel, natural, adversarial, change: adversarial - natural, relevance: at(layer.relevance, layer, channel) };
}

const KEYS = {
  "natural magnitude": (row) => -row.natural,
  "adversarial magnitude": (row) => -row.adversarial,
  "relevance": (row) => row.relevance,
  "change": (row) => -Math.abs(row.change),
  "channel number": (row) => row.channel,
};

function sortedRows(index) {
  const layer = layerOf(index);
  const rows = Array.from({ length: layer.channels }, (_, channel) => describe(layer, channel));
  const key = KEYS[state.order];
  const value = (row) => (Number.isNaN(key(row)) ? Infinity : key(row));
  return rows.sort((a, b) => value(a) - value(b) || a.channel - b.channel);
}

function format(value) {
  if (value === undefined || Number.isNaN(value)) return "–";
  return Number(value.toPrecision(3)).toString().replace("-", "−");
}
const percent = (share) => (Number.isNaN(share) ? "–" : `${(100 * share).toFixed(1)} %`);

// Logits of the kept images: linear in the activations. Restored channels have their natural values
// in the adversarial run; silenced ones are 0 in both.
function computeLogits(samples, layer, kind, silenced, restored) {
  const { images, weight, bias } = samples, width = layer.channels, count = bias.length;
  const logits = new Float64Array(images.length * count);
  for (let image = 0; image < images.length; image++) {
    for (let k = 0; k < count; k++) {
      let sum = bias[k];
      for (let c = 0; c < width; c++) {
        if (silenced.has(c)) continue;
        const from = kind === "adversarial" && restored.has(c) ? "natural" : kind;
        sum += weight[k * width + c] * samples[from][image * width + c];
      }
      logits[image * count + k] = sum;
    }
  }
  return logits;
}

function findCorrect(samples, logits) {
  const count = samples.bias.length;
  return samples.images.map((image, row) => {
    let best = 0;
    for (let k = 1; k < count; k++) if (logits[row * count + k] > logits[row * count + best]) best = k;
    return best === data.labels[image];
  });
}

function isExact(index) {
  const layer = layerOf(index), samples = model(index).samples;
  return Boolean(samples && layer.exact && samples.weight.length === samples.bias.length * layer.channels);
}

function measureEffect(index) {
  const layer = layerOf(index), samples = model(index).samples;
  const silenced = chosen("silenced", index), restored = chosen("restored", index), none = new Set();
  const k = data.shown[state.row];
  const shift = { natural: 0, adversarial: 0 };
  for (let c = 0; c < layer.channels; c++) {
    const g = at(layer.relevance, layer, c), natural = at(layer.natural.magnitude, layer, c);
    const attacked = at(layer.adversarial.magnitude, layer, c);
    if (silenced.has(c)) {
      shift.natural -= g * natural;
      shift.adversarial -= g * attacked;
    } else if (restored.has(c)) shift.adversarial += g * (natural - attacked);
  }
  if (!isExact(index)) return { shift };
  const correct = {};
  for (const kind of ["natural", "adversarial"]) {
    correct[kind] = [none, silenced].map((set, after) =>
      findCorrect(samples, computeLogits(samples, layer, kind, set, after ? restored : none)));
  }
  const share = (flags) => flags.filter(Boolean).length / flags.length;
  const accuracy = {};
  for (const kind of ["natural", "adversarial"]) accuracy[kind] = correct[kind].map(share);
  const broken = correct.natural[0].map((right, row) => right && !correct.adversarial[0][row]);
  const repaired = broken.filter((is, row) => is && correct.adversarial[1][row]).length;
  const ofClass = samples.images.filter((image) => data.labels[image] === k).length;
  return { shift, accuracy, broken: broken.filter(Boolean).length, repaired, images: samples.images.length, ofClass };
}

// ---------------------------------------------------------------- elements

function make(tag, attributes = {}, ...children) {
  const svg = ["svg", "g", "rect", "text", "line", "title"].includes(tag);
  const element = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function fill(select, names, value) {
  select.replaceChildren(...names.map(([key, text]) => make("option", { value: key }, text)));
  select.value = String(value);
}

function nameClass(row) {
  const name = data.classes[data.shown[row]];
  return /^\d+$/.test(name) ? `class ${name}` : name;
}

function makeChart(index, rows, isFirst) {
  const layer = layerOf(index), step = Math.max(5, Math.min(24, 1000 / rows.length));
  const width = Math.max(320, step * rows.length), top = 120, bottom = 50;
  const values = rows.flatMap((row) => [row?.natural, row?.adversarial]).filter((value) => value > -Infinity);
  const high = Math.max(1e-30, ...values), low = Math.min(0, ...values);
  const reach = Math.max(1e-30, ...rows.map((row) => Math.abs(row?.relevance || 0)));
  const y = (value) => top - ((top - 4) * (value - low)) / (high - low);
  const svg = make("svg", { xmlns: "http://www.w3.org/2000/svg", viewBox: `0 0 ${width} ${top + bottom + 4}`, role: "group",
    "font-family": "sans-serif" });
  svg.style.minWidth = `${rows.length * 5}px`;
  const silenced = chosen("silenced", index), restored = chosen("restored", index);
  rows.forEach((row, column) => {
    if (!row) return;
    const x = column * step, pinned = state.pinned.includes(isFirst ? row.channel : row.first);
    const words = [`channel ${row.channel}`, silenced.has(row.channel) && "silenced", restored.has(row.channel) && "restored", pinned && "pinned"];
    const group = make("g", { class: "bar-group", tabindex: 0, role: "button", "data-channel": row.channel, "data-model": index,
      "data-state": words.slice(1).filter(Boolean).join(" "), "aria-label": words.filter(Boolean).join(", ") });
    const back = pinned ? "#d3dde6" : restored.has(row.channel) ? "#d9f0e3" : "#ffffff";
    group.append(make("rect", { class: "back", x, y: 0, width: step, height: top + bottom, fill: back }));
    const opacity = silenced.has(row.channel) ? 0.15 : 1, inner = { x: x + step * 0.12, width: step * 0.76, opacity };
    if (!Number.isNaN(row.natural)) {
      const ends = [y(0), y(row.natural)].sort((a, b) => a - b);
      group.append(make("rect", { ...inner, y: ends[0], height: ends[1] - ends[0], fill: NATURAL, "fill-opacity": 0.45 }));
    }
    const level = restored.has(row.channel) ? row.natural : row.adversarial;
    if (!Number.isNaN(level)) group.append(make("rect", { ...inner, y: y(level) - 1.5, height: 3, fill: ADVERSARIAL }));
    const size = (Math.abs(row.relevance || 0) / reach) * (bottom / 2), middle = top + 4 + bottom / 2;
    group.append(make("rect", { ...inner, y: row.relevance < 0 ? middle : middle - size, height: size, fill: row.relevance < 0 ? "#222" : "#888" }));
    group.addEventListener("click", () => act(index, row));
    group.addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === " ") { event.preventDefault(); act(index, row); }
    });
    for (const kind of ["mouseenter", "focus"])
      group.addEventListener(kind, () => { state.pointed = isFirst ? row.channel : row.first; drawCards(); });
    svg.append(group);
  });
  const wrap = make("div", { class: "chart" }, svg);
  const words = isFirst ? `sorted by ${state.order}` : `each below the channel of ${model().label} that it matches`;
  const title = make("p", {}, make("b", {}, `${model(index).label}, ${layer.name}`), ` on images of ${nameClass(state.row)}: ${layer.channels} channels, ${words}`);
  const key = make("p", { class: "soft" }, make("span", { class: "natural" }, "bars: natural"), ", ",
    make("span", { class: "adversarial" }, `lines: adversarial (${attackWords()})`),
    `, magnitude up to ${format(high)}. Below: relevance up to ±${format(reach)}, PR grey and up, NR black and down.`);
  return make("div", { "data-chart": index }, title, key, wrap);
}

function attackWords() {
  return state.strength < data.strengths.length ? `${data.attackName} at ${data.strengths[state.strength]}` : data.attack;
}

function drawCharts() {
  const rows = sortedRows(state.model), charts = [makeChart(state.model, rows, true)];
  if (state.other >= 0) {
    const match = matchOf(state.other), layer = layerOf(state.other);
    const linked = rows.map((row) => {
      const channel = match ? match.partner.get(row.channel) : undefined;
      return channel === undefined ? null : { ...describe(layer, channel), first: row.channel };
    });
    charts.push(match ? makeChart(state.other, linked, false)
      : make("p", { class: "soft" }, `The comparison has no channels of ${model(state.other).label} that match those of this layer.`));
  }
  const focused = document.activeElement?.getAttribute?.("data-channel");
  const scrolls = [...document.querySelectorAll(".chart")].map((chart) => chart.scrollLeft);
  find("charts").replaceChildren(...charts);
  document.querySelectorAll(".chart").forEach((chart, at) => { chart.scrollLeft = scrolls[at] ?? 0; });
  if (focused !== null && focused !== undefined) document.querySelector(`[data-model="${state.model}"][data-channel="${focused}"]`)?.focus();
}

function drawEffect() {
  const parts = [];
  for (const index of [state.model, state.other]) {
    if (index < 0) continue;
    const silenced = chosen("silenced", index), restored = chosen("restored", index);
    if (!silenced.size && !restored.size) continue;
    const effect = measureEffect(index), exact = layerOf(index).exact;
    parts.push(make("p", {}, make("b", {}, `${model(index).label}, ${layerOf(index).name}: ${silenced.size} silenced, ${restored.size} restored.`),
      ` The mean logit of ${nameClass(state.row)} changes by `, make("b", { "data-shift": "natural" }, format(effect.shift.natural)), " on its natural, by ",
      make("b", { "data-shift": "adversarial" }, format(effect.shift.adversarial)), ` on its adversarial images (${exact ? "exactly: this is the penultimate layer" : "to first order: relevance times change"}).`));
    if (!effect.accuracy) {
      if (!exact) parts.push(make("p", { class: "soft" }, "What becomes of answers takes the networks: cs.explore(result, models={...})."));
      continue;
    }
    const line = make("p", {}, `Of ${effect.images} images of all classes, computed image by image: `);
    for (const kind of ["natural", "adversarial"]) {
      const [before, after] = effect.accuracy[kind].map(percent);
      line.append(make("span", { class: kind }, kind), ` accuracy ${before} → `, make("b", { "data-accuracy": kind }, after), kind === "natural" ? "; " : ". ");
    }
    line.append(`Of ${effect.broken} that the attack breaks, `, make("b", { "data-repaired": "" }, String(effect.repaired)), " are right again. The attack is not made anew.");
    parts.push(line);
  }
  if (!parts.length) parts.push(make("p", { class: "soft" }, "Nothing is silenced or restored: choose above what a click does, and click on bars."));
  find("effect").replaceChildren(...parts);
}

// ---------------------------------------------------------------- pictures

const sheets = {};
function loadSheet(key, text) {
  sheets[key] ??= new Promise((resolve) => {
    const image = new Image();
    image.onload = () => resolve(image);
    image.src = `data:image/png;base64,${text}`;
  });
  return sheets[key];
}

async function paint(canvas, key, text, number, [height, width], map) {
  canvas.width = width; canvas.height = height;
  const context = canvas.getContext("2d");
  const sheet = await loadSheet(key, text);
  context.drawImage(sheet, (number % ACROSS) * width, Math.floor(number / ACROSS) * height, width, height, 0, 0, width, height);
  if (map) await paintMap(canvas, map);
}

// Mark where a channel fires: elsewhere the picture fades.
async function paintMap(canvas, { key, text, number, size: [height, width] }) {
  const small = make("canvas");
  await paint(small, key, text, number, [height, width]);
  const large = make("canvas", { width: canvas.width, height: canvas.height });
  large.getContext("2d").drawImage(small, 0, 0, canvas.width, canvas.height);
  const mask = large.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
  const context = canvas.getContext("2d"), picture = context.getImageData(0, 0, canvas.width, canvas.height);
  for (let i = 0; i < mask.length; i += 4) {
    const part = 0.25 + (0.75 * mask[i]) / 255;
    for (let c = 0; c < 3; c++) picture.data[i + c] = 255 - (255 - picture.data[i + c]) * part;
    picture.data[i] = Math.max(picture.data[i], 255 - (1 - mask[i] / 255) * 400);
  }
  context.putImageData(picture, 0, 0);
}

function locate(kind, index, image) {
  const names = kind === "natural" ? ["natural", "views"] : [`adversarial/${index}`];
  for (const name of names) {
    const number = data.pictures[name]?.images.indexOf(image) ?? -1;
    if (number >= 0) return { key: name, text: data.pictures[name].sheet, number, size: data.pictures[name].size };
  }
  return null;
}

function findMap(index, channel, image) {
  const views = layerOf(index).views, row = views ? views.channels.indexOf(channel) : -1;
  if (!views?.maps || row < 0 || !find("maps").checked) return null;
  const total = views.channels.length, each = views.references[0][0].length;
  for (const by of [0, 1]) {
    const rank = views.references[by][row].indexOf(image);
    if (rank >= 0) return { key: `maps/${place(index)}`, text: views.maps, number: (by * total + row) * each + rank, size: views.mapSize };
  }
  return null;
}

function makeTile(source, words, enlarge, map) {
  const canvas = make("canvas");
  const tile = make("button", { class: "tile", type: "button", title: words, "aria-label": words }, canvas);
  if (source) paint(canvas, source.key, source.text, source.number, source.size, map);
  tile.addEventListener("click", enlarge);
  return tile;
}

const words = (image) => `image ${image}, ${data.classes[data.labels[image]]}`;

function listTiles(index, channel, kind) {
  const references = layerOf(index)[kind].references[state.by]?.[channel] ?? [];
  const tiles = references.map(([image, activation]) => {
    const told = words(image) + (activation === undefined ? "" : `: ${format(activation)}`);
    const map = kind === "natural" ? findMap(index, channel, image) : null;
    return makeTile(locate(kind, index, image), told, () => enlarge(index, channel, image), map);
  });
  return make("div", { class: "tiles" }, ...(tiles.length ? tiles : [make("span", { class: "soft" }, "none kept")]));
}

function show(figures, title) {
  find("large").setAttribute("aria-label", title);
  find("large-body").replaceChildren(...figures.map(({ canvas, caption }) => make("figure", {}, canvas, make("figcaption", {}, caption))));
  if (!find("large").open) find("large").showModal();
}

// The natural image beside its own adversarial one, and their difference.
async function enlarge(index, channel, image) {
  const figures = [], sources = { natural: locate("natural", index, image), adversarial: locate("adversarial", index, image) };
  const samples = isExact(index) ? model(index).samples : null, row = samples ? samples.images.indexOf(image) : -1;
  for (const [kind, source] of Object.entries(sources)) {
    const canvas = make("canvas"), width = layerOf(index).channels;
    const activation = row < 0 ? "" : `, channel ${channel}: ${format(samples[kind][row * width + channel])}`;
    if (source) await paint(canvas, source.key, source.text, source.number, source.size);
    figures.push({ canvas, caption: source ? `${kind}${activation}` : `${kind}: no picture kept` });
  }
  const map = findMap(index, channel, image);
  if (map && sources.natural) {
    const canvas = make("canvas"), { key, text, number, size } = sources.natural;
    await paint(canvas, key, text, number, size, map);
    figures.push({ canvas, caption: `where channel ${channel} fires` });
  }
  if (sources.natural && sources.adversarial) figures.push(subtract(figures[0].canvas, figures[1].canvas));
  show(figures, words(image));
}

function subtract(first, second) {
  const canvas = make("canvas", { width: first.width, height: first.height }), context = canvas.getContext("2d");
  const [a, b] = [first, second].map((one) => one.getContext("2d").getImageData(0, 0, first.width, first.height));
  for (let i = 0; i < a.data.length; i++) if (i % 4 < 3) a.data[i] = 128 + 8 * (b.data[i] - a.data[i]);
  context.putImageData(a, 0, 0);
  return { canvas, caption: "adversarial less natural, times 8, on grey" };
}

function listViews(index, channel) {
  const views = layerOf(index).views, row = views ? views.channels.indexOf(channel) : -1;
  if (row < 0) return [];
  const [noise, start, driven, natural] = views.activations[row];
  const captions = { noise: `drives it, from noise: ${format(noise)}`, start: `a natural image: ${format(start)}`, driven: `driven in the ball: ${format(driven)}` };
  const tiles = Object.entries(captions).map(([which, caption]) => {
    const source = { key: `${which}/${place(index)}`, text: views[which], number: row, size: views.size };
    const enlargeView = async () => {
      const figures = [];
      for (const [name, text] of Object.entries(captions)) {
        const canvas = make("canvas");
        await paint(canvas, `${name}/${place(index)}`, views[name], row, views.size);
        figures.push({ canvas, caption: text });
      }
      show(figures, `channel ${channel}`);
    };
    return makeTile(source, caption, enlargeView);
  });
  const note = make("div", { class: "soft" }, `images that drive it: from noise (${format(noise)}), and a natural one driven in the ball (${format(start)} → ${format(driven)}); the largest on a natural image: ${format(natural)}`);
  return [note, make("div", { class: "tiles" }, ...tiles)];
}

// ---------------------------------------------------------------- cards

function makeCard(index, channel) {
  const layer = layerOf(index), row = describe(layer, channel);
  const sign = row.relevance > 0 ? "positively relevant (PR), evidence for" : row.relevance < 0 ? "negatively relevant (NR), evidence against" : "neither for nor against";
  const match = index === state.model && state.other >= 0 ? matchOf(state.other) : null;
  const partner = match?.partner.get(channel);
  const linked = partner === undefined ? "" : ` Matches channel ${partner} of ${model(state.other).label} (correlation ${format(match.correlation.get(channel))}).`;
  const card = make("div", { class: "card", "data-card": channel, "data-of": index }, make("h2", {}, `Channel ${channel} of ${model(index).label}`),
    make("p", {}, `Relevance ${format(row.relevance)}, ${sign} `, make("i", {}, nameClass(state.row)), `; the attack changes its magnitude by ${format(row.change)}.${linked}`));
  for (const kind of ["natural", "adversarial"]) {
    card.append(make("div", {}, make("span", { class: kind }, kind), `: magnitude ${format(row[kind])}` +
      (kind === "natural" || state.strength >= data.strengths.length ? `, active on ${percent(at(layer[kind].frequency, layer, channel))} of the class's images` : "")));
    card.append(listTiles(index, channel, kind));
  }
  card.append(...listViews(index, channel));
  return card;
}

function drawCards() {
  const first = sortedRows(state.model)[0].channel, shown = [...state.pinned];
  const pointed = state.pointed ?? (shown.length ? null : first);
  if (pointed !== null && !shown.includes(pointed) && shown.length < 2) shown.push(pointed);
  const cards = [];
  for (const channel of shown) {
    cards.push(makeCard(state.model, channel));
    const partner = state.other >= 0 ? matchOf(state.other)?.partner.get(channel) : undefined;
    if (partner !== undefined) cards.push(makeCard(state.other, partner));
  }
  find("cards").replaceChildren(...cards);
}

// ---------------------------------------------------------------- what clicks do

function act(index, row) {
  const channel = row.channel;
  if (state.mode === "pin") {
    const first = index === state.model ? channel : row.first;
    state.pinned = state.pinned.includes(first) ? state.pinned.filter((one) => one !== first) : [...state.pinned, first].slice(-2);
    state.pointed = null;
  } else {
    const kind = state.mode === "silence" ? "silenced" : "restored", set = chosen(kind, index);
    set.has(channel) ? set.delete(channel) : set.add(channel);
    if (set.has(channel)) chosen(kind === "silenced" ? "restored" : "silenced", index).delete(channel);
  }
  draw();
}

const plain = () => ({
  model: model().label, layer: layerOf(state.model).name, class: data.classes[data.shown[state.row]], order: state.order,
  beside: state.other < 0 ? null : model(state.other).label, pinned: state.pinned,
  silenced: [...chosen("silenced", state.model)].sort((a, b) => a - b), restored: [...chosen("restored", state.model)].sort((a, b) => a - b),
});

function makeCode() {
  const { model: label, layer, silenced, restored } = plain(), text = (value) => JSON.stringify(value);
  const lines = ["import channelscope as cs", "", `# net: ${text(label).slice(1, -1)}; x, x_adv: natural and adversarial images`];
  if (restored.length) lines.push(`with cs.capture(net, ${text(layer)}) as natural:`, "    net(x)");
  const contexts = [];
  if (restored.length) contexts.push(`cs.patched(net, {${text(layer)}: (${text(restored)}, natural[${text(layer)}])})`);
  if (silenced.length) contexts.push(`cs.ablated(net, {${text(layer)}: ${text(silenced)}})`);
  if (contexts.length) lines.push(`with ${contexts.join(", ")}:`);
  lines.push(`${contexts.length ? "    " : ""}logits = net(x_adv)`);
  return `${lines.join("\n")}\n`;
}

function save(name, text, type) {
  const link = make("a", { href: URL.createObjectURL(new Blob([text], { type })), download: name });
  link.click();
  say(`Saved as ${name}.`);
}
function say(text) { find("done").textContent = text; }

function makeTable() {
  const head = "model,layer,class,channel,natural,adversarial,change,relevance,silenced,restored";
  const quote = (text) => `"${String(text).replaceAll('"', '""')}"`;
  const { model: label, layer, class: name, silenced, restored } = plain();
  const rows = sortedRows(state.model).map((row) => [quote(label), quote(layer), quote(name), row.channel, row.natural, row.adversarial, row.change,
    row.relevance, silenced.includes(row.channel), restored.includes(row.channel)].join(","));
  return `${[head, ...rows].join("\n")}\n`;
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {  // a page from a file may not
    const area = make("textarea");
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  say("Copied.");
}

// The selection is in the page's address too, so that a copied address shows the same.
function readAddress() {
  try {
    const saved = JSON.parse(decodeURIComponent(location.hash.slice(1)) || "{}");
    const index = data.models.findIndex((one) => one.label === saved.model);
    if (index < 0) return;
    state.model = index;
    state.layer = Math.max(0, model().layers.findIndex((layer) => layer.name === saved.layer));
    state.row = Math.max(0, data.shown.indexOf(data.classes.indexOf(saved.class)));
    if (data.orders.includes(saved.order)) state.order = saved.order;
    state.other = data.models.findIndex((one) => one.label === saved.beside);
    const fitting = (list) => (list ?? []).filter((c) => Number.isInteger(c) && c >= 0 && c < layerOf(state.model).channels);
    state.pinned = fitting(saved.pinned).slice(0, 2);
    for (const kind of ["silenced", "restored"]) state[kind][place(state.model)] = new Set(fitting(saved[kind]));
  } catch { /* an address that is not ours */ }
}

function draw() {
  find("count").max = layerOf(state.model).channels;
  fill(find("model"), data.models.map((one, index) => [index, one.label]), state.model);
  fill(find("layer"), model().layers.map((one, index) => [index, one.name]), state.layer);
  const others = data.models.map((one, index) => [index, one.label]).filter(([index]) => index !== state.model);
  fill(find("other"), [[-1, "no other"], ...others], state.other);
  fill(find("class"), data.shown.map((_, row) => [row, nameClass(row)]), state.row);
  fill(find("order"), data.orders.map((name) => [name, name]), state.order);
  find("strength").value = state.strength;
  find("strength-name").textContent = attackWords();
  find("strength-label").hidden = !data.strengths.length;
  find("maps-label").hidden = !layerOf(state.model).views?.maps;
  drawCharts();
  drawEffect();
  drawCards();
  try { history.replaceState(null, "", `#${encodeURIComponent(JSON.stringify(plain()))}`); } catch { /* in a frame */ }
}

find("strength").max = data.strengths.length;
const follow = (id, set) => find(id).addEventListener("input", (event) => { set(event.target.value); draw(); });
function forget() { state.pinned = []; state.pointed = null; }
follow("model", (value) => {
  const name = layerOf(state.model).name;
  state.model = Number(value);
  const same = model().layers.findIndex((layer) => layer.name === name);
  state.layer = same < 0 ? model().layers.length - 1 : same;
  if (state.other === state.model) state.other = -1;
  forget();
});
follow("layer", (value) => { state.layer = Number(value); forget(); });
follow("other", (value) => { state.other = Number(value); });
follow("class", (value) => { state.row = Number(value); });
follow("order", (value) => { state.order = value; });
follow("strength", (value) => { state.strength = Number(value); });
follow("maps", () => {});
for (const radio of document.querySelectorAll("[name=mode]")) radio.addEventListener("input", () => { state.mode = radio.value; });
for (const radio of document.querySelectorAll("[name=by]")) radio.addEventListener("input", () => { state.by = radio.value; drawCards(); });
find("many").addEventListener("click", () => {
  if (state.mode === "pin") return say("Choose first whether a click silences or restores.");
  const [kind, opposite] = state.mode === "silence" ? ["silenced", "restored"] : ["restored", "silenced"];
  for (const { channel } of sortedRows(state.model).slice(0, Number(find("count").value))) {
    chosen(kind, state.model).add(channel);
    chosen(opposite, state.model).delete(channel);
  }
  draw();
});
find("clear").addEventListener("click", () => { state.silenced = {}; state.restored = {}; forget(); draw(); });
find("code").addEventListener("click", () => copy(makeCode()));
find("selection").addEventListener("click", () => save("selection.json", `${JSON.stringify(plain(), null, 1)}\n`, "application/json"));
find("svg").addEventListener("click", () => save("channels.svg", new XMLSerializer().serializeToString(document.querySelector("#charts svg")), "image/svg+xml"));
find("csv").addEventListener("click", () => save("channels.csv", makeTable(), "text/csv"));
find("choices").addEventListener("submit", (event) => event.preventDefault());
readAddress();
draw();
