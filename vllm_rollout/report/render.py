"""Writes a run's report folder: evidence first, then what is rendered from it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vllm_rollout.model.errors import RolloutError
from vllm_rollout.model.evidence import Evidence, write_evidence
from vllm_rollout.model.text import shown
from vllm_rollout.report.changes import Comparison, Kept, compare_runs, nothing_kept


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportPaths:
    """The files of one report folder, and what its page compares the run with."""

    html: Path
    junit: Path
    evidence: Path
    comparisons: tuple[Comparison, ...] = ()


def write_reports(
    evidence: Evidence,
    folder: Path,
    *,
    beside: Path | None = None,
    kept: Kept = nothing_kept,
    sign_off_words: Sequence[str] | None = None,
) -> ReportPaths:
    """Write `evidence.json`, `report.html` and `junit.xml` into `folder`.

    The evidence is written first, so nothing is lost when rendering fails. It is compared with the
    last passing run of each environment, in the reports beside `folder`, or `beside` another, and
    in what is `kept`.
    `sign_off_words` are the options by which the policy has a person sign off, None where the
    policy is not known.

    Raises:
        RolloutError: the others could not be rendered or written.
    """
    folder = folder.resolve()
    paths = ReportPaths(
        html=folder / "report.html", junit=folder / "junit.xml", evidence=folder / "evidence.json"
    )
    write_evidence(evidence, paths.evidence)
    try:
        from vllm_rollout.report.html import page_html
        from vllm_rollout.report.junit import junit_xml

        comparisons = compare_runs(evidence, beside.resolve() if beside else folder, kept)
        _write(paths.html, page_html(evidence, comparisons, sign_off_words).encode())
        _write(paths.junit, junit_xml(evidence))
    except Exception as error:  # whatever it is, the run that it is about has ended
        raise RolloutError(
            f"rendering the report failed: {type(error).__name__}: {error}",
            remedy=f"The results are safe in {paths.evidence}; read them there.",
        ) from error
    return replace(paths, comparisons=tuple(comparisons))


def update_index(reports: Path) -> str:
    """List the runs of a reports folder in its page; return what kept it from that, or "".

    A run has ended by then: what is in its neighbours' folders changes nothing about it.
    """
    try:
        from vllm_rollout.report.index_page import write_index
        from vllm_rollout.report.run_index import AFTER_A_RUN

        write_index(reports, AFTER_A_RUN)
    except Exception as error:  # noqa: BLE001
        return f"the list of runs could not be written: {shown(f'{type(error).__name__}: {error}')}"
    return ""


def _write(path: Path, content: bytes) -> None:
    """Write the file whole, or not at all."""
    partial = path.with_suffix(".partial")
    partial.write_bytes(content)
    partial.replace(path)
