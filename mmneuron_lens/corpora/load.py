"""The one way in: a folder of one's own, published corpora, a hub data set, or a name, read as a `Corpus`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from mmneuron_lens.corpora.cache import cache_folder
from mmneuron_lens.corpora.corpus import Corpus
from mmneuron_lens.corpora.folder import QUESTIONS, read_folder
from mmneuron_lens.corpora.published import PUBLISHED, PublishedCorpus, corpora_in, read_corpora
from mmneuron_lens.corpora.records import RecordProblems
from mmneuron_lens.corpora.rows import CorpusError
from mmneuron_lens.corpora.sample import DOMAINS, Sample

GROUP = "mmneuron_lens.corpora"
"""The entry points whose names are corpora. Each is a function of `images`, `domains` and `seed`, as far as they are
given, that returns a folder with a `questions.jsonl`."""

HUB = "hub:"


def load_corpus(
    source: str | Path,
    *,
    domains: str | Sequence[str] | None = None,
    images: int | None = None,
    questions_per_image: int | None = None,
    seed: int = 0,
    split: str | None = None,
    domain: str | None = None,
    config: str | None = None,
    revision: str | None = None,
    images_folder: str | Path | None = None,
) -> Corpus:
    """Reads a corpus.

    - source: a folder with a `questions.jsonl`; a folder of corpora as published (`vqav2`, `rsvqa`, `pmc_vqa`,
      `docvqa`, `lingoqa`); `hub:OWNER/NAME`, or `hub:` and a folder that `datasets` wrote; or a name, such as `drawn`.
      A folder that is called like a name is given as a `Path`, or as `./drawn`.
    - domains: only these. All that are there if left out; those of one's own folder may have any name.
    - images: so many of each domain, the first ones; all if left out, which of a published corpus are thousands.
    - questions_per_image: so many of each, drawn; all if left out.
    - seed: of every draw.
    - split: of published corpora "train" (if left out), "evaluation", or a split as published; of a hub data set its
      own name.
    - domain: of a hub data set, whose columns are those of this domain's published corpus.
    - config, revision: of a hub data set.
    - images_folder: where a hub data set's images are written, each once; the user's cache if left out.

    Raises `CorpusError` for a source that is none of these, an argument that it does not take, or not one good row;
    `UnknownName` for a domain that is not there; `MissingPackage` for a hub data set without `datasets`.
    """
    for name, value in (("images", images), ("questions_per_image", questions_per_image)):
        if value is not None and value < 1:
            raise CorpusError(f"{name} is {value}; it must be 1 or more, or left out for all.")
    only = [domains] if isinstance(domains, str) else None if domains is None else list(domains)
    of_hub = {"domain": domain, "config": config, "revision": revision, "images_folder": images_folder}
    if isinstance(source, str) and source.startswith(HUB):
        _refuse("a hub data set, whose one domain is given as domain=", domains=domains)
        folder = Path(images_folder or cache_folder() / "images")
        corpus = _from_hub(source.removeprefix(HUB), domain, split or "train", images, folder, config, revision)
    elif isinstance(source, str) and (named := _named(source)):
        _refuse(f"corpus {source!r}", split=split, **of_hub)
        given = {"images": images, "domains": only, "seed": seed}
        folder = named.load()(**{name: value for name, value in given.items() if value is not None})
        corpus = _from_folder(folder, only, source)
    elif (Path(source) / QUESTIONS).is_file():
        _refuse(f"a folder with {QUESTIONS}", split=split, **of_hub)
        corpus = _from_folder(Path(source), only, Path(source).resolve().name)
    elif corpora_in(source):
        _refuse("a folder of published corpora", **of_hub)
        corpus = _from_published(Path(source), split or "train", only, images)
    else:
        raise CorpusError(_unknown(source))
    if not corpus:
        first = next((f" The first: {one}" for one in corpus.problems), "")
        raise CorpusError(f"{source} has no good row among {corpus.problems.rows}.{first}")
    return corpus.some(images, questions_per_image, seed=seed)


def _from_folder(folder: Path, only: Sequence[str] | None, name: str) -> Corpus:
    samples, problems = read_folder(folder)
    corpus = Corpus(name, tuple(samples), problems, folder.resolve())
    return corpus if only is None else corpus.only(only)


def _from_published(folder: Path, split: str, only: Sequence[str] | None, images: int | None) -> Corpus:
    there = read_corpora(folder, split)
    if absent := [one for one in only or () if one not in there]:
        raise CorpusError(f"{folder} has no corpus of {', '.join(absent)} with that split; it has {', '.join(there)}.")
    problems = RecordProblems(folder)
    read: dict[str, PublishedCorpus] = {one: there[one] for one in there if only is None or one in only}
    samples = [sample for one in read.values() for sample in _of_first_images(one.read(problems), images)]
    official = {one: corpus.name for one, corpus in read.items()}
    return Corpus(folder.resolve().name, tuple(samples), problems, folder.resolve(), official)


def _from_hub(
    source: str,
    domain: str | None,
    split: str,
    images: int | None,
    folder: Path,
    config: str | None,
    revision: str | None,
) -> Corpus:
    from mmneuron_lens.corpora.hub import read_hub

    if domain is None:
        raise CorpusError(f"{HUB}{source}: say whose columns it has, domain= one of {', '.join(DOMAINS)}.")
    problems = RecordProblems(Path(source))
    rows = read_hub(domain, source, split, folder, problems, config=config, revision=revision)
    # Rows come over the network: none is read that is not needed.
    samples = tuple(_of_first_images(rows, images, stop=True))
    name = Path(source).resolve().name if Path(source).is_dir() else source
    return Corpus(name, samples, problems, folder.resolve(), {domain: PUBLISHED[domain].name})


def _of_first_images(samples: Iterable[Sample], images: int | None, stop: bool = False) -> Iterator[Sample]:
    """Samples of so many images, the first ones; `stop` at the first other image, instead of reading to the end."""
    known: set[tuple[Path, ...]] = set()
    for sample in samples:
        if sample.images in known or images is None or len(known) < images:
            known.add(sample.images)
            yield sample
        elif stop:
            return


def _named(source: str) -> EntryPoint | None:
    return next(iter(entry_points(group=GROUP, name=source)), None)


def _refuse(what: str, **arguments: object) -> None:
    for name, value in arguments.items():
        if value is not None:
            raise CorpusError(f"{name}={value!r} is no argument for {what}; leave it out.")


def _unknown(source: str | Path) -> str:
    found = "holds no corpus" if Path(source).is_dir() else "is neither a folder nor the name of a corpus"
    published = ", ".join(one.folder for one in PUBLISHED.values())
    names = ", ".join(sorted(one.name for one in entry_points(group=GROUP)))
    return (
        f"{source} {found}; give a folder with {QUESTIONS}, a folder with subfolders {published}, {HUB}OWNER/NAME, or "
        f"a name: {names}."
    )
