// The page: which model and which neurons are shown, in which order, and which card is open.
const byId = (id) => document.getElementById(id);
const dialog = byId("open");
const opened = byId("opened");
const search = byId("search");
const chooser = byId("model");
const choices = ["module", "domain", "layer", "reach", "selected", "effect", "order"].map(byId);

// As artifacts/digits.py writes a number: three digits, a power of ten below 0.0001, zero for zero alone.
const raised = (power) => `×10${[...String(power)].map((one) => "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"["-0123456789".indexOf(one)]).join("")}`;
const shortly = (number) => {
  if (number === null || number === 0) return number === null ? "–" : "0";
  const [digits, power] = number.toExponential(2).split("e");
  const places = Math.max(0, 2 - power);
  const settings = { minimumFractionDigits: places, maximumFractionDigits: places };
  return (power < -4 ? `${digits}${raised(+power)}` : number.toLocaleString("en", settings)).replace("-", "−");
};

let table = null;
let shownModel = -1;
let shownRow = null;
let within = false;
let draws = [];
let passes = new Uint8Array();

const arranged = (found, model) => {
  const { columns, sites } = found;
  const about = run.models[model];
  const prefix = model ? `${model + 1}:` : "";
  found.name = (row) => `${columns.layer[row]}/${columns.neuron[row]}`;
  found.full = (row) => `${sites[columns.site[row]].site} ${found.name(row)}`;
  found.link = (row) => `#${prefix}${encodeURIComponent(sites[columns.site[row]].site)}/${found.name(row)}`;
  found.dead = (row) => columns.reaches_logits[row] === 0;
  found.label = (row) => `${found.full(row)}, ${found.domains[columns.domain[row]] ?? ""}`
    + `${columns.selected[row] ? "" : ", not selected"}${found.dead(row) ? ", cannot reach the logits" : ""}`;
  found.facts = (row) => [["log-odds", columns.log_odds[row]], ["entropy, nats", columns.entropy[row]],
    columns.effect[row] === null ? ["attribution, nats", columns.attribution[row]] : ["effect, nats", columns.effect[row]]]
    .filter(([, one]) => one !== null).map(([name, one]) => [name, shortly(one)]);
  found.card = async (row) => (await load(about.chunks[Math.floor(row / run.size)]))[row % run.size];
  found.rows = new Map(columns.site.map((_, row) => [found.full(row), row]));
  found.words = columns.site.map((place, row) =>
    `${sites[place].site} ${sites[place].module} ${found.domains[columns.domain[row]] ?? ""}`.toLowerCase());
  return found;
};

// What is searched for: words of the names, and layer/neuron, a part of the number where no neuron is called so.
const asked = () => {
  const parts = search.value.trim().toLowerCase().split(/\s+/).filter(Boolean);
  const places = parts.map((part) => /^(\d+)\/(\d*)$/.exec(part)).filter(Boolean);
  const words = parts.filter((part) => !/^\d+\/\d*$/.test(part));
  const { layer, neuron } = table.columns;
  const whole = places.filter(([, one, two]) => two && neuron.some((n, row) => n === +two && layer[row] === +one));
  return (row) => words.every((word) => table.words[row].includes(word)) && places.every((place) =>
    layer[row] === +place[1]
    && (whole.includes(place) ? neuron[row] === +place[2] : String(neuron[row]).startsWith(place[2])));
};

const filters = {
  module: (row, value) => table.sites[table.columns.site[row]].called === value,
  domain: (row, value) => table.columns.domain[row] === +value || table.columns.domains[row].includes(+value),
  layer: (row, value) => table.columns.layer[row] === +value,
  reach: (row, value) => (table.columns.reaches_logits[row] === 0) === (value === "no"),
  selected: (row, value) => table.columns.selected[row] === +value,
  effect: (row, value) => {
    const { attribution_rank: among, effect_rank: amongRandom, effect_low: low, effect_high: high } = table.columns;
    if (value === "attribution") return among[row] > 0.95;
    if (value === "random") return amongRandom[row] > 0.95;
    return low[row] !== null && (low[row] > 0 || high[row] < 0);
  },
};

// Smallest first; of what is ranked by size, the largest; rows without a number last, ties in the table's order.
const keys = {
  evidence: (row) => table.columns.evidence[row],
  log_odds: (row) => (table.columns.log_odds[row] === null ? null : -table.columns.log_odds[row]),
  entropy: (row) => table.columns.entropy[row],
  attribution: (row) => (table.columns.attribution[row] === null ? null : -Math.abs(table.columns.attribution[row])),
  effect: (row) => (table.columns.effect[row] === null ? null : -Math.abs(table.columns.effect[row])),
  layer: (row) => table.columns.layer[row],
};

const update = (again) => {
  const found = asked();
  const limits = choices.slice(0, -1).filter((one) => one.value);
  const count = table.columns.site.length;
  passes = new Uint8Array(count);
  const order = [];
  for (let row = 0; row < count; row += 1) {
    if (!found(row) || !limits.every((one) => filters[one.id](row, one.value))) continue;
    passes[row] = 1;
    order.push(row);
  }
  const key = keys[byId("order").value];
  const last = (one) => (one === null ? Infinity : one);
  order.sort((one, other) => { const [a, b] = [last(key(one)), last(key(other))]; return a === b ? one - other : a < b ? -1 : 1; });
  const all = count.toLocaleString("en");
  byId("count").textContent = order.length === count ? `${all} neurons` : `${order.length.toLocaleString("en")} of ${all} neurons`;
  byId("none").hidden = order.length > 0;
  grid.show(order, again);
  drawMaps();
};

let drawing = false;
const drawMaps = () => {
  if (drawing) return;
  drawing = true;
  requestAnimationFrame(() => { drawing = false; for (const draw of draws) draw(passes); });
};

const go = (row, replace) => {
  if (replace) location.replace(table.link(row));
  else { within = true; location.hash = table.link(row); }
};
const grid = gridOf(byId("grid"), (row) => thumbnailCard(row, table));

const tip = byId("tip");
const say = (event, text, row) => {
  tip.hidden = !event;
  if (!event) return;
  tip.textContent = "";
  if (row !== undefined) tinted(make("i", "swatch", tip), table, table.columns.domain[row]);
  tip.append(text);
  tip.style.left = `${Math.max(4, Math.min(event.clientX + 12, innerWidth - tip.offsetWidth - 4))}px`;
  tip.style.top = `${event.clientY + 16}px`;
};

const options = (select, first, found) => {
  select.textContent = "";
  for (const [text, value] of [[first, ""], ...found]) { const one = make("option", "", select, text); one.value = value; }
};

const showModel = async (model) => {
  const found = await load(run.models[model].table);
  if (shownModel === model) return;
  table = found.name ? found : arranged(found, model);
  shownModel = model;
  if (chooser) chooser.value = model;
  search.value = "";
  options(byId("module"), "all modules", table.sites.map((one) => [one.called, one.called]));
  options(byId("domain"), "all domains", table.domains.map((name, place) => [name, place]));
  const layers = [...new Set(table.columns.layer)].sort((a, b) => a - b);
  options(byId("layer"), "all layers", layers.map((layer) => [`layer ${layer}`, layer]));
  for (const id of ["reach", "selected", "effect"]) byId(id).value = "";
  byId("chosen").hidden = !table.columns.selected.includes(0);
  byId("kept").textContent = run.models[model].kept;
  const legend = byId("legend");
  legend.textContent = "";
  table.domains.forEach((_, place) => domainOf(legend, table, place));
  const maps = byId("maps");
  maps.textContent = "";
  draws = table.sites.map((_, place) => mapOf(maps, table, place, (row) => go(row), say));
  update(true);
};

const showCard = async (row, wanted) => {
  shownRow = row;
  opened.textContent = "";
  const place = (steps) => (row === undefined ? undefined : grid.next(row, steps));
  for (const [id, steps] of [["previous", -1], ["next", 1]]) byId(id).disabled = place(steps) === undefined;
  if (row === undefined) {
    make("h2", "called", opened, "No card").id = "called";
    make("p", "quiet", opened, `This page has no card of ${wanted}. ${run.models[shownModel].kept}`);
  }
  if (!dialog.open) dialog.showModal();
  if (row === undefined) return;
  try {
    const card = await table.card(row);
    if (shownRow !== row) return;
    opened.replaceChildren(cardOf(card, table));
    const code = make("p", "code", opened);
    make("code", "", code, `mm.neuron(run, ${JSON.stringify(card.site)}, ${card.layer}, ${card.neuron})`);
  } catch (error) { make("p", "quiet", opened, `${error.message}; keep the folder together, or publish the page again.`); }
  opened.scrollTop = 0;
};

const route = async () => {
  const text = location.hash.slice(1);
  const found = /^(?:(\d+):)?(.+)\/(\d+)\/(\d+)$/.exec(text);
  const model = found?.[1] ? found[1] - 1 : found ? 0 : Math.max(0, shownModel);
  try { await showModel(run.models[model] ? model : 0); } catch (error) {
    byId("count").textContent = `${error.message}; keep the folder together, or publish the page again.`;
    return;
  }
  if (location.hash.slice(1) !== text) return;
  if (!found) { if (dialog.open) dialog.close(); return; }
  let site = found[2];
  try { site = decodeURIComponent(site); } catch { /* As it stands. */ }
  const wanted = `${site} ${+found[3]}/${+found[4]}`;
  await showCard(table.rows.get(wanted), wanted);
};

const leave = () => { if (within) { within = false; history.back(); } else location.replace("#"); };
const turn = (steps) => {
  const row = shownRow === undefined || shownRow === null ? undefined : grid.next(shownRow, steps);
  if (row !== undefined) go(row, true);
};

dialog.addEventListener("cancel", (event) => { event.preventDefault(); leave(); });
dialog.addEventListener("close", () => {
  opened.textContent = "";
  const row = shownRow;
  shownRow = null;
  if (location.hash.length > 1) leave();
  if (row !== null && row !== undefined) grid.focusOn(row);
});
dialog.addEventListener("click", (event) => { if (event.target === dialog) leave(); });
byId("close").addEventListener("click", leave);
byId("previous").addEventListener("click", () => turn(-1));
byId("next").addEventListener("click", () => turn(1));
byId("grid").addEventListener("click", (event) => {
  if (event.target.closest(".card") && !event.ctrlKey && !event.metaKey && !event.shiftKey) within = true;
});
byId("plain").addEventListener("change", (event) => document.documentElement.classList.toggle("plain", !event.target.checked));
for (const one of choices) one.addEventListener("change", () => update());
search.addEventListener("input", () => update());
byId("controls").addEventListener("submit", (event) => event.preventDefault());
search.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && grid.first() !== undefined) go(grid.first());
  if (event.key === "Escape") { if (search.value) { search.value = ""; update(); } else search.blur(); }
});
chooser?.addEventListener("change", () => showModel(+chooser.value));
addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest?.("input, select, textarea")) return;
  const one = { j: 1, k: -1, ArrowRight: 1, ArrowLeft: -1 }[event.key];
  const line = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  const onCard = document.activeElement?.classList.contains("card");
  if (dialog.open) { if (one) { event.preventDefault(); turn(one); } return; }
  if (event.key === "/") { event.preventDefault(); search.focus(); search.select(); return; }
  if (one && (onCard || event.key.length === 1)) { event.preventDefault(); grid.move(one); }
  if (line && onCard) { event.preventDefault(); grid.move(line * grid.columns); }
});
addEventListener("resize", drawMaps);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawMaps);
addEventListener("hashchange", route);
route();
