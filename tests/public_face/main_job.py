"""The main job of the README, typed, with the public names alone: `python main_job.py RUN`."""

from __future__ import annotations

import sys
from pathlib import Path

import mmneuron_lens as mm


def find(lens: mm.Lens, corpus: mm.Corpus, run: Path) -> mm.Identified:
    """Counts the corpus and selects neurons; both stay in the run's folder."""
    found = mm.identify(lens, corpus, permutations=5, out=run)
    chance, halves = found.controls.discovery, found.controls.overlap
    if chance is not None and halves is not None:
        print(f"false discovery rate {chance.rate():.3f}, overlap of halves {halves.mean():.2f}")
    for counts in found.counts:
        active, tokens = counts.total("llm.mlp.act")
        print(f"{counts.domain}: {tokens} tokens, {int((active == 0).sum())} silent neurons in the language model")
    return found


def silence(lens: mm.Lens, selection: mm.Selection, sample: mm.Sample) -> int:
    """How often neurons of a domain are still active once they are off: never."""
    batch = lens.encode(sample.images, [sample.question])
    graph = selection.off(sample.domain) | mm.count_active
    lens.check(graph, batch)
    counted = lens.run(graph, batch)["count_active", "llm.mlp.act"]
    answer = lens.generate(graph, batch, max_new_tokens=2, do_sample=False)
    print(f"{sample.question} {answer.text[0]!r}, expected {' or '.join(sample.answers)}")
    return int(counted[selection.neurons(sample.domain)["llm.mlp.act"]].sum())


def main(run: Path, images: int = 20) -> None:
    """Writes counts, selection, answers, deviations and their tables to a folder."""
    lens = mm.Lens("embedded/llava-next")
    corpus = mm.load_corpus("drawn", images=images, questions_per_image=2)
    selection = find(lens, corpus, run).selection
    assert silence(lens, selection, corpus.only("medical")[0]) == 0
    ablation = mm.ablate(lens, selection, corpus, random_draws=1, out=run)
    deviations = mm.deviate(lens, selection, corpus, random_draws=2, out=run)
    tables = run / "tables"
    tables.mkdir(exist_ok=True)
    selection.summary().write_csv(tables / "selection.csv")
    ablation.to_frame().write_csv(tables / "ablation.csv")
    ablation.against_random().write_csv(tables / "against_random.csv")
    deviations.to_frame().write_csv(tables / "deviations.csv")
    trace = mm.read_layers(lens, corpus[0])
    trace.save(run / "trace.safetensors")
    for layer, name in enumerate(trace.layers):
        print(f"{name}: {trace.best(-1, layer)!r}, {float(trace.entropy[layer, -1]):.2f} nats")
    for domain, entropies in mm.read_entropy(lens, corpus).items():
        print(domain, entropies.kinds)


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]))
    except mm.MMNeuronError as error:
        sys.exit(f"{error}")
