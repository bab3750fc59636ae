// A card as it is when it is open; neuron_card.html.jinja makes the same for a notebook.
const tinted = (element, table, place) => element.style.setProperty("--colour", table.colours[place] ?? "#7f7f7f");

const domainOf = (parent, table, place, name) => {
  const element = make("span", "domain", parent);
  tinted(make("i", "swatch", element), table, place);
  element.append(name ?? table.domains[place] ?? "not counted");
  return element;
};

const wordsOf = (parent, words, spaced) => {
  const line = make("span", spaced ? "words" : "words apart", parent);
  for (const [word, share, top] of words) {
    const text = typeof word === "string";
    const one = make("span", text ? "" : "pictured", line, text ? word : `${word} image tokens`);
    if (top) one.classList.add("top");
    one.style.setProperty("--share", share / 255);
  }
  return line;
};

const rangeOf = (parent, one, table, place) => {
  const line = make("div", "range", parent);
  line.setAttribute("role", "img");
  line.setAttribute("aria-label", one.text);
  tinted(line, table, place);
  const [zero, low, high, at] = one.ends;
  make("i", "zero", line).style.left = `${zero}%`;
  const spread = make("i", "spread", line);
  spread.style.left = `${low}%`;
  spread.style.width = `${high - low}%`;
  make("i", "value", line).style.left = `${at}%`;
};

const sentence = (parent, said, measured, after) => {
  const line = make("p", "effect", parent, `${said}: `);
  make("span", "measured", line, measured);
  if (after) line.append(`, ${after}`);
};

// Text in which commands stand between backquotes.
const told = (tag, parent, text, className) => {
  const line = make(tag, className, parent);
  text.split("`").forEach((part, place) => (place % 2 ? make("code", "", line, part) : line.append(part)));
};

const examplesOf = (parent, card, table) => {
  make("h3", "", parent, "What it answers to");
  told("p", parent, card.examples.length ? run.texts.examples : card.unseen, "quiet");
  const list = make("div", "examples", parent);
  for (const one of card.examples) {
    const figure = make("figure", "example", list);
    if (one.ratio !== null) stage(one, figure, 240, one.question);
    const caption = make("figcaption", "", figure);
    make("span", "activation", caption, one.activation);
    domainOf(caption, table, one.domain, one.domain_name);
    make("span", "asked", caption, one.question);
    make("span", "replied", caption, one.answers.join(", "));
    if (one.words.length) wordsOf(caption, one.words, one.spaced);
  }
};

const barsOf = (parent, card, table) => {
  if (!card.bars.length) return;
  make("h3", "", parent, "How often it is active");
  make("p", "quiet", parent, run.texts.bars);
  const grid = make("div", "bars", parent);
  for (const [kind, rows] of card.bars) {
    make("span", "kind", grid, kind ? `${kind} tokens` : "all tokens");
    for (const [place, value, low, high, text] of rows) {
      domainOf(grid, table, place);
      const track = make("span", "track", grid);
      tinted(track, table, place);
      const wide = (share) => `${(100 * share) / card.scale}%`;
      if (value !== null) make("i", "bar", track).style.width = wide(value);
      if (low !== null && high !== null) {
        const spread = make("i", "spread", track);
        spread.style.left = wide(low);
        spread.style.width = wide(high - low);
      }
      make("span", "", grid, text);
    }
  }
};

const writesOf = (parent, writes) => {
  make("h3", "", parent, "What it writes");
  const both = make("div", "written", parent);
  for (const side of ["top", "bottom"]) {
    if (!writes[side].length) continue;
    const half = make("div", "", both);
    make("p", "", half, run.texts[side]);
    const list = make("ol", "", half);
    for (const [token, score] of writes[side]) {
      const item = make("li", "", list);
      make("span", "", item, token);
      make("span", "", item, score);
    }
  }
  if (writes.contribution) sentence(parent, run.texts.contribution, writes.contribution);
};

const numbersOf = (parent, card, table) => {
  const own = card.domains[0];
  barsOf(parent, card, table);
  if (card.odds) {
    make("h3", "", parent, "How specific it is");
    sentence(parent, `${table.domains[own] ?? "Its domain"} ${run.texts.odds}`, card.odds.text);
    rangeOf(parent, card.odds, table, own);
  }
  if (card.attribution || card.effect) make("h3", "", parent, "What it does to the answers");
  if (card.attribution) sentence(parent, run.texts.attribution, card.attribution.text, card.attribution.than);
  if (card.effect) {
    sentence(parent, run.texts.effect, card.effect.text, card.effect.than);
    rangeOf(parent, card.effect, table, own);
  }
  if (card.writes && (card.writes.top.length || card.writes.contribution)) writesOf(parent, card.writes);
  if (card.numbers.length) {
    make("h3", "", parent, "Numbers");
    const list = make("dl", "numbers-of", parent);
    for (const [label, text] of card.numbers) {
      make("dt", "", list, label);
      make("dd", "", list, text);
    }
  }
  if (!card.missing.length) return;
  make("h3", "", parent, "What was not run");
  const absent = make("ul", "absent", parent);
  for (const text of card.missing) told("li", absent, text);
};

const cardOf = (card, table) => {
  const article = make("article", "neuron");
  make("p", "where", article, `${card.module} · ${card.site}`);
  const called = make("h2", "called", article, `${card.layer}/${card.neuron}${card.unreachable ? " †" : ""}`);
  called.id = "called";
  const chips = make("p", "chips", article);
  for (const place of card.domains) domainOf(make("span", "chip", chips), table, place);
  make("span", "chip", chips, card.selected ? "selected" : "not selected");
  if (card.unreachable) make("p", "dead", article, `† ${card.unreachable}`);
  const body = make("div", card.examples.length ? "body" : "body bare", article);
  examplesOf(make("section", "", body), card, table);
  numbersOf(make("section", "", body), card, table);
  return article;
};
