// A picture with a neuron's map on it: bilinear between the cells, an outline, the box of the largest activation.
const SIDE = run.side;
const SVG = "http://www.w3.org/2000/svg";
const shownMaps = new WeakMap();

const decoded = (text) => Uint8Array.from(atob(text), (one) => one.charCodeAt(0));

// Bilinear between centres, constant outside of them.
const places = (length) => {
  const found = [];
  for (let place = 0; place < length; place += 1) {
    const at = Math.min(Math.max(((place + 0.5) * SIDE) / length - 0.5, 0), SIDE - 1);
    const first = Math.min(Math.floor(at), SIDE - 2);
    found.push([first, at - first]);
  }
  return found;
};

const colours = (() => {
  const table = new Uint8ClampedArray(4 * 256);
  for (let value = 0; value < 256; value += 1) {
    const place = (value / 255) * (run.ramp.length - 1);
    const first = Math.min(Math.floor(place), run.ramp.length - 2);
    for (let channel = 0; channel < 3; channel += 1) {
      const [low, high] = [run.ramp[first][channel], run.ramp[first + 1][channel]];
      table[4 * value + channel] = low + (place - first) * (high - low);
    }
    table[4 * value + 3] = run.opacity * value;
  }
  return table;
})();

const paint = (canvas, cells, ratio, longest) => {
  canvas.width = Math.max(SIDE, Math.round(ratio < 1 ? longest * ratio : longest));
  canvas.height = Math.max(SIDE, Math.round(ratio < 1 ? longest : longest / ratio));
  const context = canvas.getContext("2d");
  const image = context.createImageData(canvas.width, canvas.height);
  const [across, down] = [places(canvas.width), places(canvas.height)];
  let place = 0;
  for (const [row, below] of down) {
    const [upper, lower] = [row * SIDE, (row + 1) * SIDE];
    for (const [column, right] of across) {
      const above = cells[upper + column] + right * (cells[upper + column + 1] - cells[upper + column]);
      const under = cells[lower + column] + right * (cells[lower + column + 1] - cells[lower + column]);
      const colour = 4 * Math.round(above + below * (under - above));
      for (let channel = 0; channel < 4; channel += 1) image.data[place + channel] = colours[colour + channel];
      place += 4;
    }
  }
  context.putImageData(image, 0, 0);
};

const drawn = (parent, name, className, attributes) => {
  const element = document.createElementNS(SVG, name);
  element.setAttribute("class", className);
  for (const key in attributes) element.setAttribute(key, attributes[key]);
  parent.append(element);
};

const stage = (one, parent, longest, alt) => {
  const frame = make("div", "stage", parent);
  if (one.ratio === null) return frame;
  const shown = make("div", one.picture ? "shown" : "shown bare", frame);
  shown.style.setProperty("--ratio", one.ratio);
  if (one.picture) {
    const image = make("img", "", shown);
    image.alt = alt;
    image.decoding = "async";
    image.src = one.picture;
  }
  const cells = one.map ? decoded(one.map) : new Uint8Array(SIDE * SIDE);
  shownMaps.set(shown, { cells, maximum: one.maximum });
  if (one.map) paint(make("canvas", "heat", shown), cells, one.ratio, longest);
  const svg = document.createElementNS(SVG, "svg");
  for (const [key, value] of [["viewBox", "0 0 1 1"], ["preserveAspectRatio", "none"], ["aria-hidden", "true"]]) {
    svg.setAttribute(key, value);
  }
  shown.append(svg);
  for (const name of ["edge", "line"]) {
    if (one.outline) drawn(svg, "path", name, { d: one.outline });
    if (!one.box) continue;
    const [left, top, right, bottom] = one.box;
    drawn(svg, "rect", name, { x: left, y: top, width: right - left, height: bottom - top });
  }
  return frame;
};

// The value under the pointer, on every picture of the page.
const value = document.getElementById("value");
addEventListener("pointermove", (event) => {
  const shown = event.target.closest?.(".shown");
  const map = shown && shownMaps.get(shown);
  if (!map) { value.hidden = true; return; }
  const box = shown.getBoundingClientRect();
  const cell = (at, start, length) => Math.min(SIDE - 1, Math.max(0, Math.floor(((at - start) / length) * SIDE)));
  const [row, column] = [cell(event.clientY, box.top, box.height), cell(event.clientX, box.left, box.width)];
  const found = (map.cells[row * SIDE + column] / 255) * map.maximum;
  value.textContent = shortly(Math.max(0, found));
  value.hidden = false;
  // An open dialog is above everything else.
  const above = document.querySelector("dialog[open]") ?? document.body;
  if (value.parentElement !== above) above.append(value);
  value.style.left = `${Math.min(event.clientX + 14, innerWidth - value.offsetWidth - 4)}px`;
  value.style.top = `${Math.max(4, event.clientY - 30)}px`;
});
