"""What the pages say: examples run as doctests, links lead somewhere."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import lawful

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
MODULES = sorted(
    found.name for found in pkgutil.walk_packages(lawful.__path__, "lawful.") if not found.name.endswith("__main__")
)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_examples_of_the_page_run(page):
    result = doctest.testfile(str(page), module_relative=False, encoding="utf-8", optionflags=doctest.ELLIPSIS)
    assert result.failed == 0


def test_readme_has_an_example():
    assert ">>> lawful.laws_of(model)" in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_to_files(page):
    code = r"```.*?```|`[^`]*`|^ {4}.*?$"
    prose = re.sub(code, "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", prose):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("name", MODULES)
def test_examples_of_the_docstrings_run(name):
    assert doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS).failed == 0


@pytest.mark.parametrize("name", lawful.__all__)
def test_public_names_resolve_and_are_documented(name):
    value = getattr(lawful, name)
    assert name == "__version__" or value.__doc__


def test_unknown_names_raise_attribute_error():
    with pytest.raises(AttributeError, match="lawful.*'nothing'"):
        lawful.nothing  # noqa: B018
