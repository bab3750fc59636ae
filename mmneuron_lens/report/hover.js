"use strict";
// One lens per element of class "lens": pictures with patches, words, and a table of what the chosen one decodes to.
for (const root of document.querySelectorAll(".lens")) {
  const data = JSON.parse(root.querySelector("script").textContent);
  const make = (name, className, parent) => {
    const element = document.createElement(name);
    element.className = className;
    parent.append(element);
    return element;
  };
  const seen = make("div", "seen", root);
  const said = make("div", "said", root);
  const buttons = new Map();
  let pinned = null;

  // Probability from the paper's colour to blue, as the still heatmap has it, in either theme.
  const tint = (share) => `color-mix(in srgb, var(--heat-one) ${100 * share}%, var(--heat-zero))`;

  const title = make("p", "title", said);
  const table = make("table", "heat", make("div", "scroll", said));
  table.parentElement.tabIndex = 0;
  table.parentElement.setAttribute("role", "region");
  table.parentElement.setAttribute("aria-label", "what it decodes to");
  const head = make("tr", "", make("thead", "", table));
  for (const name of ["layer", ...data.tokens[0][0].map((_, rank) => `Top ${rank + 1}`), "entropy"]) {
    const cell = make("th", "", head);
    cell.scope = "col";
    cell.textContent = name;
  }
  const body = make("tbody", "", table);
  const cells = data.layers.map((layer) => {
    const row = make("tr", "", body);
    const name = make("th", "", row);
    name.scope = "row";
    name.textContent = layer;
    const words = data.tokens[0][0].map(() => make("td", "word", row));
    return [words, make("td", "number", row)];
  });

  const show = (position) => {
    const where = data.boxes[position] ? "image patch" : data.kinds[position] === "image" ? "image token" : "text token";
    title.textContent = `${where} ${data.labels[position]} (position ${position + 1})`;
    cells.forEach(([words, entropy], layer) => {
      words.forEach((cell, rank) => {
        const share = data.probabilities[layer][position][rank] / 1000;
        cell.textContent = data.words[data.tokens[layer][position][rank]];
        cell.style.background = tint(share);
        cell.style.color = "var(--heat-text)";
        cell.title = `${(100 * share).toFixed(1)} %`;
      });
      entropy.textContent = data.entropy[layer][position].toFixed(2);
    });
    for (const [other, button] of buttons) button.classList.toggle("chosen", other === position);
  };

  const listen = (button, position) => {
    button.type = "button";
    buttons.set(position, button);
    button.addEventListener("pointerenter", () => show(position));
    button.addEventListener("focus", () => show(position));
    button.addEventListener("click", () => { pinned = position; show(position); });
  };
  seen.addEventListener("pointerleave", () => { if (pinned !== null) show(pinned); });

  // Patches of one image and one size make one view of it: the overview, and the larger tiles.
  const views = new Map();
  data.boxes.forEach((box, position) => {
    if (!box) return;
    const [image, left, top, right, bottom] = box;
    const key = `${image} ${(right - left).toFixed(4)} ${(bottom - top).toFixed(4)}`;
    if (!views.has(key)) views.set(key, { image, patches: [] });
    views.get(key).patches.push([position, left, top, right, bottom]);
  });
  const places = make("div", "pictures", seen);
  const draw = ({ image, patches }) => {
    const frame = make("figure", "view", places);
    const picture = make("div", "picture", frame);
    const shown = make("img", "", picture);
    shown.src = data.pictures[image];
    shown.alt = data.question;
    for (const [position, left, top, right, bottom] of patches) {
      const patch = make("button", "patch", picture);
      const style = { left, top, width: right - left, height: bottom - top };
      for (const side in style) patch.style[side] = `${100 * style[side]}%`;
      patch.setAttribute("aria-label", data.labels[position]);
      listen(patch, position);
    }
    make("figcaption", "", frame).textContent = patches.length ? `${patches.length} patches` : "what the model sees";
  };
  views.forEach(draw);
  data.pictures.forEach((_, image) => {
    if (![...views.values()].some((view) => view.image === image)) draw({ image, patches: [] });
  });

  const words = (name, chosen) => {
    if (!chosen.length) return;
    make("p", "title", seen).textContent = name;
    const line = make("div", "words", seen);
    for (const position of chosen) {
      const chip = make("button", "chip", line);
      chip.textContent = data.labels[position];
      listen(chip, position);
    }
  };
  const positions = data.labels.map((_, position) => position);
  words("Image tokens without a place in the image", positions.filter((p) => data.kinds[p] === "image" && !data.boxes[p]));
  words("Words of the prompt", positions.filter((p) => data.kinds[p] !== "image"));

  // To begin with, the last word: what it continues with is the answer.
  show(positions.at(-1));
}
