// Where the neurons lie: for each site a picture of layers by neurons, a cell or a dot a neuron.
const ROW = { least: 4, most: 14, height: 190 };
const GUTTER = 26;
const TOP = 4;
const ACROSS = 1200;
const FAINT = 0.15;
const NEAR = 5;

// All neurons without a card, however many: a pixel has the mean colour of those that lie in it.
const faintly = (site, colours) => {
  const codes = decoded(site.others);
  const canvas = document.createElement("canvas");
  canvas.width = Math.min(site.neurons, ACROSS);
  canvas.height = site.layers;
  const parts = colours.map((colour) => [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16)));
  const sums = new Float32Array(4 * canvas.width * canvas.height);
  codes.forEach((code, at) => {
    if (!code) return;
    const across = Math.floor(((at % site.neurons) * canvas.width) / site.neurons);
    const place = 4 * (Math.floor(at / site.neurons) * canvas.width + across);
    for (let part = 0; part < 3; part += 1) sums[place + part] += parts[code - 1][part];
    sums[place + 3] += 1;
  });
  const context = canvas.getContext("2d");
  const image = context.createImageData(canvas.width, canvas.height);
  for (let place = 0; place < sums.length; place += 4) {
    const count = sums[place + 3];
    for (let part = 0; part < 3; part += 1) image.data[place + part] = count ? sums[place + part] / count : 0;
    image.data[place + 3] = 255 * FAINT * Math.min(1, (count * canvas.width) / site.neurons);
  }
  context.putImageData(image, 0, 0);
  return canvas;
};

const mapOf = (parent, table, place, open, say) => {
  const site = table.sites[place];
  const figure = make("figure", site.layers > 1 ? "site" : "site single", parent);
  const size = `${site.layers} layer${site.layers > 1 ? "s" : ""} × ${site.neurons.toLocaleString("en")} neurons`;
  const dead = site.unreachable.length ? `; † layer ${site.unreachable.join(", ")} cannot reach the logits` : "";
  make("figcaption", "", figure, `${site.called}, ${size}${dead}`);
  const canvas = make("canvas", "map", figure);
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", `${site.called}, ${size}: where the neurons with a card lie`);
  const rows = [];
  table.columns.site.forEach((one, row) => { if (one === place) rows.push(row); });
  const faint = site.others ? faintly(site, table.colours) : null;
  const high = Math.max(ROW.least, Math.min(ROW.most, Math.floor(ROW.height / site.layers)));
  let width = 1;

  const draw = (passes) => {
    const style = getComputedStyle(document.documentElement);
    const [quiet, line] = ["--quiet", "--line"].map((name) => style.getPropertyValue(name));
    const scale = devicePixelRatio;
    width = Math.max(1, canvas.clientWidth - GUTTER);
    canvas.width = Math.round((width + GUTTER) * scale);
    canvas.height = Math.round((high * site.layers + TOP) * scale);
    canvas.style.height = `${high * site.layers + TOP}px`;
    const context = canvas.getContext("2d");
    context.scale(scale, scale);
    context.fillStyle = quiet;
    context.font = "10px system-ui, sans-serif";
    context.textAlign = "right";
    context.textBaseline = "middle";
    const every = Math.ceil(13 / high);
    for (let layer = 0; layer < site.layers; layer += every) {
      context.fillText(layer, GUTTER - 6, TOP + (layer + 0.5) * high + 0.5);
    }
    context.translate(GUTTER, TOP);
    context.fillStyle = style.getPropertyValue("--stage");
    context.fillRect(0, 0, width, high * site.layers);
    if (faint) {
      context.imageSmoothingEnabled = false;
      context.drawImage(faint, 0, 0, width, high * site.layers);
    }
    context.fillStyle = line;
    for (let layer = 0; layer < site.layers; layer += 1) context.fillRect(0, (layer + 1) * high - 0.5, width, 0.5);
    context.strokeStyle = quiet;
    for (const layer of site.unreachable) {
      context.save();
      context.beginPath();
      context.rect(0, layer * high, width, high);
      context.clip();
      context.globalAlpha = 0.35;
      context.beginPath();
      for (let x = -high; x < width; x += 7) { context.moveTo(x, (layer + 1) * high); context.lineTo(x + high, layer * high); }
      context.stroke();
      context.restore();
    }
    const cell = width / site.neurons;
    const dot = (neuron, layer, least) => {
      const wide = Math.max(least, cell > 3 ? cell - 0.6 : cell);
      context.fillRect(neuron * cell, layer * high + 0.5, wide, high - 1);
    };
    const some = (chosen, selected) => (domain, put) => {
      for (const row of rows) {
        if (table.columns.domain[row] !== domain || passes[row] !== chosen) continue;
        if (table.columns.selected[row] === selected) put(table.columns.neuron[row], table.columns.layer[row]);
      }
    };
    const painted = (alpha, least, each) => {
      context.globalAlpha = alpha;
      [...table.colours, "#7f7f7f"].forEach((colour, place) => {
        context.fillStyle = colour;
        each(place < table.colours.length ? place : -1, (neuron, layer) => dot(neuron, layer, least));
      });
    };
    painted(0.08, 1, some(0, 0));
    painted(0.16, 1.5, some(0, 1));
    painted(0.26, 1.5, some(1, 0));
    painted(1, 2, some(1, 1));
    context.globalAlpha = 1;
  };

  // The card whose dot is nearest, or what lies below the pointer without a card.
  const under = (event, passes) => {
    const box = canvas.getBoundingClientRect();
    const [x, y] = [event.clientX - box.left - GUTTER, event.clientY - box.top - TOP];
    const layer = Math.min(site.layers - 1, Math.max(0, Math.floor(y / high)));
    let best = null;
    for (const row of rows) {
      if (table.columns.layer[row] !== layer || !passes[row]) continue;
      const away = Math.abs(((table.columns.neuron[row] + 0.5) * width) / site.neurons - x);
      if (away < Math.max(NEAR, width / site.neurons / 2) && (best === null || away < best.away)) best = { row, away };
    }
    return { layer, row: best?.row, neuron: Math.min(site.neurons - 1, Math.max(0, Math.floor((x / width) * site.neurons))) };
  };
  let passing = [];
  canvas.addEventListener("pointermove", (event) => {
    const found = under(event, passing);
    canvas.style.cursor = found.row === undefined ? "" : "pointer";
    say(event, found.row === undefined ? `layer ${found.layer}, near neuron ${found.neuron}` : table.label(found.row), found.row);
  });
  canvas.addEventListener("pointerleave", () => say(null));
  canvas.addEventListener("click", (event) => {
    const found = under(event, passing);
    if (found.row !== undefined) open(found.row);
  });
  return (passes) => { passing = passes; draw(passes); };
};
