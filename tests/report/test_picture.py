"""The picture of a report that README shows: made by a browser, and of the report as it is now.

`make picture` makes it again. Its facts are in the file, so no two browsers' pixels are compared.
"""

import json
import os
import struct
import zlib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from support.browser import picture

from vllm_rollout.model.evidence import read_evidence
from vllm_rollout.report import formatting
from vllm_rollout.report.render import write_reports
from vllm_rollout.report.rows import report_items

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "reports" / "example" / "evidence.json"
PICTURE = ROOT / "docs" / "report.png"
WIDTH, HEIGHT = 1280, 860
MOST_BYTES = 200_000
_KEY = b"vllm-rollout facts\0"


class Headings(HTMLParser):
    """The headings of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self._inside = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("h1", "h2", "h3"):
            self._inside = True
            self.found.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = self._inside and tag not in ("h1", "h2", "h3")

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.found[-1] = " ".join(f"{self.found[-1]} {data}".split())


@pytest.fixture
def page(tmp_path: Path) -> Path:
    """The report that is pictured."""
    return write_reports(read_evidence(EXAMPLE), tmp_path / "report").html


def facts(page: Path) -> dict[str, Any]:
    """What the picture shows: of the evidence, and how the page is divided."""
    evidence = read_evidence(EXAMPLE)
    end = formatting.headline(evidence)
    return {
        "evidence": evidence.digest,
        "title": formatting.report_title(evidence),
        "conclusion": [end.word, end.sentence],
        "headings": Headings(page.read_text(encoding="utf-8")).found,
        "gates": [
            [item.title, item.outcome, *map(formatting.verdict_text, item.verdicts)]
            for item in report_items(evidence)
        ],
    }


def chunks(png: bytes) -> list[bytes]:
    """The chunks of a PNG, each with its length and checksum."""
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    found, at = [], 8
    while at < len(png):
        (length,) = struct.unpack_from(">I", png, at)
        found.append(png[at : at + length + 12])
        at += length + 12
    return found


def with_text(png: bytes, text: str) -> bytes:
    """The picture with a chunk of text, which no viewer shows."""
    body = b"tEXt" + _KEY + text.encode("ascii")
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    *first, end = chunks(png)
    return png[:8] + b"".join((*first, chunk, end))


def test_the_picture_in_the_readme_is_of_the_report_as_it_is(page: Path) -> None:
    content = PICTURE.read_bytes()
    (kept,) = (each[8:-4] for each in chunks(content) if each[4:].startswith(b"tEXt" + _KEY))
    assert json.loads(kept.removeprefix(_KEY)) == facts(page), "it is stale: make picture"
    assert len(content) < MOST_BYTES
    assert "(docs/report.png)" in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.browser
def test_a_browser_makes_the_picture_again(page: Path, tmp_path: Path) -> None:
    made = tmp_path / "report.png"
    picture(page.as_uri(), tmp_path / "profile", made, width=WIDTH, height=HEIGHT)
    content = with_text(made.read_bytes(), json.dumps(facts(page)))
    assert struct.unpack_from(">II", content, 16) == (WIDTH, HEIGHT)
    assert MOST_BYTES / 10 < len(content) < MOST_BYTES
    if os.environ.get("VLLM_ROLLOUT_PICTURE") == "write":
        PICTURE.write_bytes(content)
