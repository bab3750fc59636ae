"""Where the images of a row lie: one rule for all readers.

A path in a row goes down from the corpus' folder: one that is absolute, or has a `..`, is refused. Links on the way are
the user's own and are followed, wherever they lead.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath

from mmneuron_lens.corpora.rows import BadRow, bare, quote


def image_file(
    folder: Path, names: Sequence[str], corpus: str = "", advice: str = "unpack all images, or remove the record"
) -> Path:
    """The first of these paths that is a file, joined with its folder; links are followed, and not replaced.

    - folder: that the paths go down from.
    - corpus: what a message calls the folder; its name if left out.
    - advice: what to do about an image that is missing.

    Raises `BadRow` for a path that does not go down from the folder, or naming the first if none is a file.
    """
    first = ""
    for name in names:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts:
            raise BadRow(
                f"image {quote(name)} lies outside {corpus or folder.name}; its path must be relative to the folder, "
                "without `..`: copy the image into it, or put a link there."
            )
        # Unlike `Path.is_file`, this also holds for a name that is too long for a file.
        if os.path.isfile(folder / path):
            return folder / path
        first = first or _why(folder, name)
    if first.startswith(" is no path"):
        raise BadRow(f"image {quote(names[0])}{first}; give one relative to the folder.")
    where = "" if corpus else f" in {folder}"
    others = f" (nor {bare(', '.join(names[1:]))})" if len(names) > 1 else ""
    raise BadRow(f"image {quote(names[0])} is missing{where}{others}{first}; {advice}.")


def _why(folder: Path, name: str) -> str:
    """More about a path that is no file, as far as there is more to say."""
    path = folder / name
    try:
        return f": it is {'a folder' if stat.S_ISDIR(os.stat(path).st_mode) else 'neither a file nor a folder'}"
    except ValueError as error:
        return f" is no path ({error})"
    except OSError as error:
        known = {errno.ELOOP: ": its link leads in a circle", errno.EACCES: ": it may not be read"}
        if error.errno in known:
            return known[error.errno]
        if error.errno not in (errno.ENOENT, errno.ENOTDIR):
            return f" is no path ({error.strerror})"
    if path.is_symlink():
        return f": it is a link to {bare(os.readlink(path))}, where nothing is"
    if PureWindowsPath(name).drive or name.startswith("~"):
        return ": its path must be relative to the folder"
    if "\\" in name:
        return ": it has backslashes, where a path has /"
    others = (name.lower(), name.upper(), str(path.with_suffix(path.suffix.swapcase()).relative_to(folder)))
    found = next((one for one in others if os.path.isfile(folder / one)), "")
    return f": there is {bare(found)}, in other letters" if found else ""
