"""The runs in a reports folder: what each one found, read from the file that it left.

Evidence is believed only where its digest fits its content, and only as the run of its folder's
name. What is half written, changed or foreign is listed with the reason.
"""

import math
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from vllm_rollout.model.errors import RolloutError, UsageError
from vllm_rollout.model.evidence import RUN_ID, read_evidence
from vllm_rollout.model.text import all_printable, one_line, shown
from vllm_rollout.report.run_rows import RunRow, capacity_row, evidence_row

PAGES = {"evidence.json": "report.html", "capacity.json": "capacity.html"}
"""Files that a run leaves for programs, and the page of each."""

_LARGEST_FILE = 32 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """The most that is read: newest runs, and bytes of their files."""

    runs: int
    size: int


ALL = Bounds(runs=2_000, size=2**30)
AFTER_A_RUN = Bounds(runs=500, size=64 * 2**20)
"""Some two seconds of work."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unreadable:
    """A run's folder of which nothing can be believed, and why."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunIndex:
    """Runs, the newest first. `left_out` counts older ones, beyond what is read."""

    runs: tuple[RunRow, ...] = ()
    unreadable: tuple[Unreadable, ...] = ()
    left_out: int = 0


def run_folders(reports: Path, model: str = "") -> list[Path]:
    """Return the folders of runs of `model`, or of all models; the newest first.

    Raises:
        OSError: the reports folder is there and cannot be read.
    """
    models = [reports / model] if model else list(reports.iterdir()) if reports.is_dir() else []
    found = [
        run
        for each in models
        if each.is_dir()
        for run in _inside(each)
        if RUN_ID.fullmatch(run.name) and run.is_dir()
    ]
    return sorted(found, key=lambda run: (run.name, run.parent.name), reverse=True)


def read_index(reports: Path, model: str = "", bounds: Bounds = ALL) -> RunIndex:
    """Read the newest runs of `model`, or of all models, within `bounds`."""
    folders = run_folders(reports, model)
    read: list[RunRow | Unreadable] = []
    left = bounds.size
    for folder in folders[: bounds.runs]:
        left -= sum(_size(folder / name) for name in PAGES)
        if left < 0:
            break
        read.append(read_run(folder))
    return RunIndex(
        runs=tuple(each for each in read if isinstance(each, RunRow)),
        unreadable=tuple(each for each in read if isinstance(each, Unreadable)),
        left_out=len(folders) - len(read),
    )


def read_run(folder: Path) -> RunRow | Unreadable:
    """Read a run's folder, whatever is in it."""
    name = f"{folder.parent.name}/{folder.name}"
    try:
        row = _row(folder, name)
        if row.name == name:
            return row
        reason = f"what it holds is of another run, {row.name}"
    except Exception as error:  # noqa: BLE001 - a file from outside breaks no list
        reason = str(error) if isinstance(error, RolloutError | ValueError) else repr(error)
    return Unreadable(name=one_line(name), reason=shown(reason))


def _row(folder: Path, name: str) -> RunRow:
    for file, page in PAGES.items():
        if (folder / file).exists():
            check_file(folder / file)
            shown_by = f"{name}/{page}" if (folder / page).is_file() else ""
            if file == "evidence.json":
                return evidence_row(read_evidence(folder / file), shown_by)
            return capacity_row((folder / file).read_bytes(), shown_by)
    raise ValueError("it has no evidence: it is under way, or was killed")


def find_run(reports: Path, model: str = "", run: str = "") -> RunRow:
    """The newest run with a page, of those whose name begins with `run`.

    Raises:
        UsageError: there is none; the evidence of the one that is named is not to be believed; or
            the name's beginning is that of several.
    """
    what = "no report" + (f" of {model}" if model else "") + (f", run {run}," if run else "")
    folders = [each for each in run_folders(reports, model) if each.name.startswith(run)]
    if run and len(folders) > 1:
        raise UsageError(
            f"{len(folders)} runs begin with {run}", remedy="Give more of the run's name."
        )
    for folder in folders:
        row = read_run(folder)
        if isinstance(row, RunRow) and row.page:
            return row
        if run:
            why = row.reason if isinstance(row, Unreadable) else "its page is gone"
            raise UsageError(
                f"{what.rstrip(',')}: {why}", remedy="Run the gates again, or name another run."
            )
    raise UsageError(
        f"{what} is in {reports}", remedy="Run gates, or name the folder: --report-dir FOLDER."
    )


def document(index: RunIndex) -> dict[str, Any]:
    """The index as JSON-ready data; a figure that is no number is null."""
    data: dict[str, Any] = all_printable(
        _strict(TypeAdapter(RunIndex).dump_python(index, mode="json"))
    )
    return data


def _strict(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _strict(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_strict(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "Infinity" if value == math.inf else None  # as evidence.json has it
    return value


def _inside(folder: Path) -> Iterator[Path]:
    try:
        yield from folder.iterdir()
    except OSError:
        return  # a folder that is not ours to read hides no other


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def check_file(path: Path) -> None:
    """Refuse what a run does not leave.

    Raises:
        UsageError: it is no file, or too large to be read.
        OSError: it is not there, or not ours to read.
    """
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise UsageError(f"{path.name} is no file")
    if found.st_size > _LARGEST_FILE:
        raise UsageError(f"{path.name} is larger than {_LARGEST_FILE >> 20} MB")
