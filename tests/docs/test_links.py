"""A link in the documentation leads somewhere."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[2]
_PAGES = sorted([*_ROOT.glob("*.md"), *(_ROOT / "docs").glob("*.md")])
_LINK = re.compile(r"\]\((?!https?:|mailto:)([^)#\s]*)(?:#([^)\s]+))?\)")
_HEADING = re.compile(r"^#+ +(.+)$", re.MULTILINE)
_CODE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def _anchor(heading: str) -> str:
    """The anchor that GitHub gives to a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def _broken(page: Path) -> Iterator[str]:
    for target, anchor in _LINK.findall(_CODE.sub("", page.read_text())):
        found = (page.parent / target).resolve() if target else page
        if not found.exists():
            yield target
        elif anchor and anchor not in {_anchor(heading) for heading in _HEADING.findall(found.read_text())}:
            yield f"{target}#{anchor}"


@pytest.mark.parametrize("page", _PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_headings_that_exist(page: Path) -> None:
    assert list(_broken(page)) == []
