"""Site maps show every site of their model with its sizes, and are those that the architectures of today give."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

DOCS = Path(__file__).parent.parent / "docs"


def drawing():
    spec = importlib.util.spec_from_file_location("make_site_map", DOCS / "make_site_map.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def words(file: Path) -> list[str]:
    return [
        " ".join(text.itertext()).strip() for text in ElementTree.parse(file).iter("{http://www.w3.org/2000/svg}text")
    ]


MAPS = drawing()


@pytest.mark.parametrize("name", MAPS.MAPS)
def test_the_map_is_that_of_the_architecture(name, tmp_path):
    architecture = MAPS.published(MAPS.MAPS[name])
    MAPS.draw(architecture, MAPS.MAPS[name], tmp_path / "map.svg")
    assert words(DOCS / "figures" / f"{name}.svg") == words(tmp_path / "map.svg"), "run docs/make_site_map.py"
    ids = set(re.findall(r'id="([\w.]+)"', (DOCS / "figures" / f"{name}.svg").read_text()))
    assert set(architecture.sites) <= ids
