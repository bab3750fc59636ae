"""How quick a page of thousands of neurons is: made-up cards, in chromium.

    python benchmarks/neurons_page.py --cards 5000

Prints a table: time to write the page, its size on disk, first paint, when the first cards have their pictures, time
of a filter, of a search and of another order until the grid shows it, of a jump to the end, and memory of the script's
heap.
Times inside the page are the medians of five.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from neuron_inputs import Made, write_run
from playwright.sync_api import sync_playwright

from mmneuron_lens.paper.neurons_page import publish_neurons

SHAPES = {"vision.mlp.act": (24, 4096), "projector.act": (1, 4096), "llm.mlp.act": (32, 11008)}
"""LLaVA-NeXT-7B."""

AGAIN = 5

# Until the cards that are in sight hold what belongs to them, and the screen shows it.
SHOWN = """
async (act) => {
  const times = [];
  for (const [one, back] of act) {
    for (const [id, value] of [one, back]) {
      const element = document.getElementById(id);
      const start = performance.now();
      element.value = value;
      element.dispatchEvent(new Event(id === "search" ? "input" : "change", { bubbles: true }));
      const grid = performance.now() - start;
      await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
      const painted = performance.now() - start;
      while ([...document.querySelectorAll(".card")].some((card) => !card.querySelector(".line > *"))) {
        await new Promise((done) => setTimeout(done, 2));
      }
      times.push([grid, painted, performance.now() - start]);
    }
  }
  return times;
}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cards", type=int, default=5000)
    parser.add_argument("--examples", type=int, default=5, help="pictures a neuron")
    parser.add_argument("--unselected", action="store_true", help="a row for every neuron of the model")
    asked = parser.parse_args()
    neurons = sum(layers * width for layers, width in SHAPES.values())
    made = Made(shapes=SHAPES, share=asked.cards / neurons, k=asked.examples, unselected=asked.unselected)
    with tempfile.TemporaryDirectory() as folder:
        run = write_run(Path(folder), made)
        start = time.perf_counter()
        index = publish_neurons(run, most=asked.cards)
        rows = [("write the page", f"{time.perf_counter() - start:.1f} s"), *on_disk(index.parent)]
        rows += measured(index)
    for name, value in rows:
        print(f"| {name} | {value} |")
    print(f"load of the machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


def on_disk(folder: Path) -> list[tuple[str, str]]:
    files = [file for file in folder.iterdir() if file.is_file()]
    data = sum(file.stat().st_size for file in files)
    table = sum(file.stat().st_size for file in files if file.name.startswith("table-"))
    index = (folder / "index.html").stat().st_size
    return [
        ("files", f"{len(files)}, {data / 2**20:.1f} MiB without pictures"),
        ("read before the first card", f"{(table + index) / 2**20:.2f} MiB"),
    ]


def measured(index: Path) -> list[tuple[str, str]]:
    chromium = os.environ.get("MMNEURON_CHROMIUM") or shutil.which("chromium")
    flags = ["--no-sandbox", "--disable-gpu", "--enable-precise-memory-info"]
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=flags)
        context = browser.new_context(viewport={"width": 1280, "height": 900}, bypass_csp=True)
        page = context.new_page()
        page.goto(index.as_uri())
        page.wait_for_selector(".card .line > *", state="attached")
        first = page.evaluate("performance.now()")
        paint = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
        rows = [("first paint", f"{paint:.0f} ms"), ("first cards with pictures", f"{first:.0f} ms")]
        page.evaluate("document.querySelector('#grid').scrollIntoView()")
        for name, acts in {
            "filter (domain)": [("domain", "2"), ("domain", "")],
            "search (llm.mlp.act 14/)": [("search", "llm.mlp.act 14/"), ("search", "")],
            "order (entropy)": [("order", "entropy"), ("order", "log_odds")],
        }.items():
            times: Any = page.evaluate(SHOWN, [acts] * AGAIN)
            grid, painted, pictures = (statistics.median(some) for some in zip(*times, strict=True))
            rows.append((name, f"grid {grid:.0f} ms, on the screen {painted:.0f} ms, pictures too {pictures:.0f} ms"))
        start = time.perf_counter()
        page.evaluate("scrollTo(0, document.documentElement.scrollHeight)")
        page.locator(".card .line > *").last.wait_for(state="attached")
        rows.append(("jump to the end", f"{1000 * (time.perf_counter() - start):.0f} ms"))
        for _ in range(30):
            page.mouse.wheel(0, -3000)
            page.wait_for_timeout(30)
        heap = page.evaluate("performance.memory.usedJSHeapSize") / 2**20
        elements = page.evaluate("document.querySelectorAll('*').length")
        browser.close()
    return [*rows, ("heap after scrolling", f"{heap:.0f} MiB"), ("elements", f"{elements}")]


if __name__ == "__main__":
    main()
