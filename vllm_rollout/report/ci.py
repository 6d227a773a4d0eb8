"""Tells the CI system that a run is in how it ended: GitHub Actions and GitLab, by their variables.

Nothing here changes a verdict or an exit code: what cannot be written or posted is a warning.
"""

import os
import re
import secrets
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

from vllm_rollout.model.text import one_line
from vllm_rollout.report.ci_summary import CiResult, annotations, outputs, summary
from vllm_rollout.report.gitlab_note import post_note
from vllm_rollout.variables import option_or_environment

T = TypeVar("T")

DOTENV = "rollout.env"
"""File in the report folder with the outputs, for GitLab's `artifacts:reports:dotenv`."""
_POLICY = Path("rollout.yaml")
# What GitLab takes as the value in a dotenv file; the rest of a path or name cannot be written.
_DOTENV_VALUE = re.compile(r"[\w.,:/@+=~-]*", re.ASCII)


def tell_ci(runs: Sequence[CiResult], report_dir: Path, say: Callable[[str], None]) -> None:
    """Tell the CI system how `runs` ended; `say` prints a line on standard output as it is.

    Outside of a CI it does nothing.
    """
    if not (_in("GITHUB_ACTIONS") or _in("GITLAB_CI")):
        return
    results = _tried("run", lambda: list(map(_completed, runs)), say)
    if not results:
        return
    if _in("GITHUB_ACTIONS"):
        _tried("annotations", lambda: _print(annotations(results), say), say)
        _tried("job summary", lambda: _append("GITHUB_STEP_SUMMARY", summary(results)), say)
        _tried("job outputs", lambda: _append("GITHUB_OUTPUT", _github_outputs(results)), say)
    if _in("GITLAB_CI"):
        _tried("dotenv file", lambda: _write_dotenv(report_dir / DOTENV, results), say)
        _tried("merge-request note", lambda: post_note(_named(results), summary(results)), say)


def _tried(what: str, act: Callable[[], T], say: Callable[[str], None]) -> T | None:
    """Return what `act` returns; where it fails, say a warning: the run has ended.

    Ctrl-C, or SIGTERM of a job that is cancelled, ends the telling and nothing else.
    """
    try:
        return act()
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - verdict and exit code stand
        why = str(error) or type(error).__name__
        with suppress(OSError, UnicodeError):  # of standard output, as it may be
            say(one_line(f"warning: the {what} could not be written: {why}"))
        return None


def _print(lines: Sequence[str], say: Callable[[str], None]) -> None:
    for line in lines:
        say(line)


def _named(results: Sequence[CiResult]) -> str:
    return " ".join(f"{result.model}/{result.environment}" for result in results)


def _in(system: str) -> bool:
    return os.environ.get(system) == "true"


def _completed(result: CiResult) -> CiResult:
    """The result with what is known from this machine's files and variables."""
    report = result.report and _relative(result.report)
    file = Path(option_or_environment("policy", result.policy_file or None) or _POLICY)
    return replace(
        result,
        report=report,
        link=_link(report) if report else "",
        policy_file=str(_relative(file)) if file.exists() else "",
    )


def _relative(path: Path) -> Path:
    """The path from the repository's folder, or whole where it is outside."""
    root = os.environ.get("GITHUB_WORKSPACE") or os.environ.get("CI_PROJECT_DIR") or "."
    absolute, folder = path.resolve(), Path(root).resolve()
    return absolute.relative_to(folder) if absolute.is_relative_to(folder) else absolute


def _link(report: Path) -> str:
    """Where a browser finds the report: GitLab's artifact, or GitHub's page of the run's."""
    get = os.environ.get
    url = ""
    if (job := get("CI_JOB_URL")) and not report.is_absolute():
        url = f"{job}/artifacts/file/{report}"
    elif (server := get("GITHUB_SERVER_URL")) and (run := get("GITHUB_RUN_ID")):
        url = f"{server}/{get('GITHUB_REPOSITORY', '')}/actions/runs/{run}#artifacts"
    return quote(url, safe=":/#-._~") if url.startswith(("https://", "http://")) else ""


def _github_outputs(results: Sequence[CiResult]) -> str:
    """Job outputs, each between delimiters that no value can hold."""
    end = f"end-{secrets.token_hex(16)}"
    return "".join(f"{name}<<{end}\n{value}\n{end}\n" for name, value in outputs(results).items())


def _write_dotenv(file: Path, results: Sequence[CiResult]) -> None:
    """The outputs as `ROLLOUT_NAME=value`: no option of the suite reads such a variable."""
    lines = [
        f"ROLLOUT_{name.upper().replace('-', '_')}={value}\n"
        for name, value in outputs(results).items()
        if _DOTENV_VALUE.fullmatch(value)
    ]
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    partial.write_text("".join(lines), encoding="utf-8")
    partial.replace(file)


def _append(variable: str, text: str) -> None:
    """Add text to the file that a variable of GitHub Actions names; nothing where it names none."""
    if not (named := os.environ.get(variable)):
        return
    file = Path(named)
    begin = "\n" if _ends_within_a_line(file) else ""
    with file.open("a", encoding="utf-8") as added:
        added.write(begin + text)


def _ends_within_a_line(file: Path) -> bool:
    """True if a newline is missing at its end; of a pipe or a device, such as /dev/stdout, nothing
    is read: that may never end."""
    if not file.is_file() or not file.stat().st_size:
        return False
    with file.open("rb") as written:
        written.seek(-1, os.SEEK_END)
        return written.read(1) != b"\n"
