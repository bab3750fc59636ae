"""The commands `mmneuron push` and `mmneuron pull`: a run's artifacts and page, to and from a URL."""

from __future__ import annotations

from typing import Annotated

import typer

from mmneuron_lens.echo import echo
from mmneuron_lens.options import Out, Run
from mmneuron_lens.printing import bar, say

Url = Annotated[
    str,
    typer.Argument(
        metavar="URL", help="A folder: hf://datasets/OWNER/NAME, s3://BUCKET/FOLDER (extra \\[s3]), file:///FOLDER."
    ),
]


def push(
    run: Run,
    url: Url,
    licence: Annotated[
        str, typer.Option(help="What others may do with it, as the hub names it: cc-by-4.0.")
    ] = "unknown",
    texts: Annotated[
        bool, typer.Option("--with-texts", help="Also files with questions and answers of the corpus.")
    ] = False,
    pictures: Annotated[bool, typer.Option("--with-pictures", help="Also files with pictures of the corpus.")] = False,
    replace: Annotated[bool, typer.Option("--replace", help="In place of another run that lies there.")] = False,
) -> None:
    """Copy a run's artifacts, tables and page to a URL, with a card and a manifest of every file.

    Nothing of the corpus goes along unless it is asked for: no question, no picture, no id of a sample. A data set
    of the hub is made for its owner alone.
    """
    from mmneuron_lens.runs.remote_folder import shown_url
    from mmneuron_lens.runs.sharing import push_run

    shared = push_run(run, url, licence=licence, texts=texts, pictures=pictures, replace=replace, say=say, progress=bar)
    for why, count in shared.left_out.items():
        say(f"not sent: {count} files: {why}")
    echo(shown_url(url))


def pull(url: Url, out: Out) -> None:
    """Copy what `mmneuron push` wrote to a new folder, every file held to its size and sha256.

    A pull that was stopped goes on.
    """
    from mmneuron_lens.runs.sharing import pull_run

    pull_run(url, out, say=say, progress=bar)
    echo(out)
