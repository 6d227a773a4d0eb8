"""The deployment record: one Markdown file per production deployment."""

import os
import re
from collections.abc import Iterator, Sequence
from datetime import UTC
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from vllm_rollout.model.deployment import Build, checked_name
from vllm_rollout.model.errors import ExitCode
from vllm_rollout.model.evidence import Evidence
from vllm_rollout.model.text import one_line
from vllm_rollout.report import formatting as words
from vllm_rollout.report.rows import ROLLOUT, report_items

if TYPE_CHECKING:
    from jinja2 import Template

# What would make text more than text: code, links, images, emphasis, table cells, escapes.
_MARKDOWN = re.compile(r"([\\`*\[\]|~])")
_HTML = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


def write_record(
    evidence: Evidence,
    *,
    folder: Path,
    deployer: str,
    reason: str,
    rollback_command: str,
    undo_command: str = "",
    report_path: Path,
    version: str = "",
    previous: str = "",
    undelivered: Sequence[str] = (),
    environment: str = "production",
) -> Path:
    """Write `<model>-<YYYYmmdd-HHMMSS>.md` (UTC, when the run finished) into `folder`.

    Args:
        evidence: the rollout's.
        folder: made if it does not exist. No record is ever overwritten.
        deployer: who deployed.
        reason: why.
        rollback_command: what to type to undo the deployment, verified.
        undo_command: the same without this suite; empty where there is no such way.
        report_path: the HTML report; the record links to it, and to the evidence beside it,
            relative to `folder`.
        version: what was deployed; the build when empty.
        previous: what served before, for display.
        undelivered: a line for each message to people that did not arrive.
        environment: where it was deployed to.

    Raises:
        UsageError: the evidence's model is no name to make a file of.
    """
    model = checked_name("model", evidence.model)
    run = next((run for run in evidence.runs if run.build), None)
    build = run.build if run else None
    code, end = evidence.exit_code, words.headline(evidence)
    text = _template().render(
        evidence=evidence,
        sentence=end.sentence,
        outcome=end.word if code is None else f"{end.word} (exit code {code})",
        environment=environment,
        deployer=deployer,
        version=version or _version(build, run.images if run else ()),
        reason=reason,
        rollback_command=rollback_command,
        undo_command=undo_command,
        build=build.digest if build else "unknown",
        previous=previous or "not recorded",
        undelivered=undelivered,
        report_link=quote(os.path.relpath(report_path, folder)),
        evidence_link=quote(os.path.relpath(report_path.with_name("evidence.json"), folder)),
        rolled_back=code in {ExitCode.ROLLED_BACK, ExitCode.NEEDS_PERSON},
        gates=[item for item in report_items(evidence) if item.environment != ROLLOUT],
    )
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{model}-{evidence.finished.astimezone(UTC):%Y%m%d-%H%M%S}"
    for path in _names(folder, stem):
        try:
            with path.open("x", encoding="utf-8") as record:
                record.write(text)
        except FileExistsError:
            continue
        return path
    raise AssertionError("unreachable: the names never end")


def markdown_text(text: str) -> str:
    """`text` on one line, with nothing in it that Markdown or HTML would act on."""
    plain = "".join(_HTML.get(char, char) for char in one_line(text))
    return _MARKDOWN.sub(r"\\\1", plain)


def _names(folder: Path, stem: str) -> Iterator[Path]:
    yield folder / f"{stem}.md"
    yield from (folder / f"{stem}-{number}.md" for number in count(2))


def _version(build: Build | None, images: Sequence[str]) -> str:
    if build is None:
        return "unknown"
    revision = f", model revision {build.model_revision}" if build.model_revision else ""
    image = f", image {', '.join(images)}" if images else ""
    return f"build {build.short}{revision}{image}"


def _template() -> "Template":
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("vllm_rollout.report"),
        # Every value passes through `markdown_text`: that is this format's escaping.
        autoescape=False,  # noqa: S701
        finalize=lambda value: markdown_text(value) if isinstance(value, str) else value,
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["time"] = words.time_text
    environment.filters["found"] = lambda verdict: words.verdict_text(verdict).replace("\n", "; ")
    return environment.get_template("record.md.jinja")
