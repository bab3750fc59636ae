// The cards that are in sight, and a few rows above and below: thousands of cards are no more work than dozens.
const SPARE = 700;
const THUMBNAILS = 3;

const gridOf = (element, build) => {
  let [order, rows] = [[], new Map()];
  let active = 0;
  let measures = null;

  const measured = () => {
    const style = getComputedStyle(element);
    const gap = parseFloat(style.rowGap);
    const columns = style.gridTemplateColumns.split(" ").length;
    return { columns, gap, step: parseFloat(style.gridAutoRows) + gap };
  };

  const draw = () => {
    measures = measured();
    const { columns, gap, step } = measures;
    const total = Math.ceil(order.length / columns);
    const above = -element.getBoundingClientRect().top;
    const first = Math.max(0, Math.min(total - 1, Math.floor((above - SPARE) / step)));
    const last = Math.min(total, Math.max(first + 1, Math.ceil((above + innerHeight + SPARE) / step)));
    const here = new Set();
    for (let place = first * columns; place < Math.min(order.length, last * columns); place += 1) here.add(order[place]);
    for (const [row, card] of rows) if (!here.has(row)) { card.remove(); rows.delete(row); }
    let place = first * columns;
    let before = null;
    for (const row of here) {
      const card = rows.get(row) ?? build(row);
      rows.set(row, card);
      card.setAttribute("aria-posinset", place + 1);
      card.setAttribute("aria-setsize", order.length);
      const next = before === null ? element.firstChild : before.nextSibling;
      if (next !== card) element.insertBefore(card, next);
      before = card;
      place += 1;
    }
    element.style.paddingTop = `${first * step}px`;
    element.style.paddingBottom = `${Math.max(0, (total - Math.max(last, first)) * step - (total > last ? 0 : gap))}px`;
  };

  let asked = false;
  const soon = () => {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => { asked = false; draw(); });
  };
  addEventListener("scroll", soon, { passive: true });
  addEventListener("resize", soon);

  const focus = (place) => {
    if (!order.length) return;
    active = Math.max(0, Math.min(order.length - 1, place));
    if (!rows.has(order[active])) {
      const top = element.getBoundingClientRect().top + scrollY + Math.floor(active / measures.columns) * measures.step;
      scrollTo({ top: top - innerHeight / 3, behavior: "instant" });
      draw();
    }
    const card = rows.get(order[active]);
    card.scrollIntoView({ block: "nearest", behavior: "instant" });
    card.focus({ preventScroll: true });
  };
  element.addEventListener("focusin", (event) => {
    const row = event.target.closest(".card")?.neuronRow;
    if (row !== undefined) active = order.indexOf(row);
  });

  return {
    show: (chosen, again) => {
      order = chosen;
      active = -1;
      if (again) { for (const card of rows.values()) card.remove(); rows = new Map(); }
      draw();
    },
    move: (steps) => focus(active < 0 ? 0 : active + steps),
    focusOn: (row) => { const place = order.indexOf(row); if (place >= 0) focus(place); },
    next: (row, steps) => order[order.indexOf(row) + steps],
    first: () => order[0],
    get columns() { return measures.columns; },
  };
};

// A card as it lies in the grid: what the table says at once, pictures and bars when their file has come.
const thumbnailCard = (row, table) => {
  const card = make("a", "card");
  card.neuronRow = row;
  card.href = table.link(row);
  card.setAttribute("role", "listitem");
  card.setAttribute("aria-label", table.label(row));
  const head = make("span", "head", card);
  make("span", "where", head, table.sites[table.columns.site[row]].called);
  make("span", "name", head, `${table.name(row)}${table.dead(row) ? " †" : ""}`);
  const tiles = make("span", "tiles", card);
  const line = make("span", "line", card);
  const foot = make("span", "foot", card);
  const facts = make("span", "facts-of", foot);
  domainOf(facts, table, table.columns.domain[row]).classList.add("own");
  for (const [name, text] of table.facts(row)) {
    const fact = make("span", "fact", facts);
    make("span", "", fact, name);
    make("b", "", fact, text);
  }
  const columns = make("span", "columns", foot);
  table.card(row).then((found) => {
    if (!card.isConnected) return;
    for (const one of found.examples.filter((some) => some.ratio !== null).slice(0, THUMBNAILS)) stage(one, tiles, 120, "");
    card.classList.toggle("bare", !tiles.childElementCount);
    const best = found.examples[0];
    if (!best) told("span", line, found.unseen, "quiet");
    else if (best.words.length) wordsOf(line, best.words.slice(Math.max(0, best.words.findIndex((one) => one[2]) - 6)), best.spaced);
    else make("span", "asked", line, best.question);
    const [, all] = found.bars[0] ?? ["", []];
    const most = Math.max(...all.map((one) => one[1] ?? 0)) || 1;
    for (const [place, share, , , text] of all) {
      const bar = make("i", "", columns);
      bar.title = `${table.domains[place]} ${text}`;
      bar.style.height = `${Math.max(3, (100 * (share ?? 0)) / most)}%`;
      tinted(bar, table, place);
    }
  }, (error) => { make("span", "quiet", line, error.message); });
  return card;
};
