"use strict";
// A link into what is folded opens it, and goes there.
const unfold = () => {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (!target) return;
  let folded = false;
  for (let one = target; one; one = one.parentElement) {
    if (one.localName === "details" && !one.open) folded = one.open = true;
  }
  if (folded) target.scrollIntoView();
};
addEventListener("hashchange", unfold);
unfold();

// Edges behind which a box has more fade out: data-more names them.
const edges = (box) => {
  const more = [];
  if (box.scrollLeft > 1) more.push("left");
  if (box.scrollLeft + box.clientWidth < box.scrollWidth - 1) more.push("right");
  if (box.scrollTop + box.clientHeight < box.scrollHeight - 1) more.push("down");
  if (more.length) box.dataset.more = more.join(" ");
  else delete box.dataset.more;
};
const sized = new ResizeObserver((changed) => changed.forEach(({ target }) => edges(target.closest("[data-scrolls]"))));
for (const box of document.querySelectorAll(".scroll, nav.contents")) {
  box.dataset.scrolls = "";
  box.addEventListener("scroll", () => edges(box), { passive: true });
  sized.observe(box);
  if (box.firstElementChild) sized.observe(box.firstElementChild);
}

// Paper has no folds: all of them open to be printed, and close again.
let opened = [];
const printed = (begins) => {
  if (begins) opened.push(...document.querySelectorAll("details:not([open])"));
  for (const one of opened) one.open = begins;
  if (!begins) opened = [];
};
addEventListener("beforeprint", () => printed(true));
addEventListener("afterprint", () => printed(false));
matchMedia("print").addEventListener("change", ({ matches }) => printed(matches));
