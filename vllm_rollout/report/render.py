"""Writes a run's report folder: evidence first, then what is rendered from it."""

import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path

from vllm_rollout.model.errors import RolloutError
from vllm_rollout.model.evidence import Evidence, write_evidence
from vllm_rollout.report.formatting import one_line

_PACKAGE_PARENT = Path(__file__).resolve().parents[2]
_TIMEOUT_SECONDS = 120
_LOG_CHARACTERS = 4_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportPaths:
    """The files of one report folder."""

    html: Path
    junit: Path
    evidence: Path


def write_reports(evidence: Evidence, folder: Path) -> ReportPaths:
    """Write `evidence.json`, `report.html` and `junit.xml` into `folder`.

    The evidence is written first, so nothing is lost when rendering fails. Rendering is a pytest
    run of its own (see `replay`) that no configuration, conftest, plugin or environment variable
    of the user can reach.

    Raises:
        RolloutError: the renderer failed; the message ends with its output.
    """
    folder = folder.resolve()
    paths = ReportPaths(
        html=folder / "report.html", junit=folder / "junit.xml", evidence=folder / "evidence.json"
    )
    write_evidence(evidence, paths.evidence)
    _replay(paths, one_line(evidence.model))
    _tidy_junit(paths.junit, evidence)
    return paths


def _replay(paths: ReportPaths, suite_name: str) -> None:
    plugins = ("vllm_rollout.report.replay", "pytest_metadata.plugin", "pytest_html.plugin")
    command = [sys.executable, "-P", "-m", "pytest", paths.evidence.name]
    command += [f"-p{plugin}" for plugin in plugins]
    command += [
        f"--html={paths.html.name}",
        "--self-contained-html",
        f"--junitxml={paths.junit.name}",
        "--rootdir=.",
        f"-c{os.devnull}",
        "--noconftest",
        "-pno:cacheprovider",
        "-oinitial_sort=original",
        f"-ojunit_suite_name={suite_name}",
    ]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    environment["PYTHONPATH"] = os.pathsep.join(
        filter(None, (str(_PACKAGE_PARENT), environment.get("PYTHONPATH")))
    )
    try:
        done = subprocess.run(  # noqa: S603 - our own interpreter, and no shell
            command,
            # Relative names only: pytest and pytest-html read $ and [ in a path as more than text.
            cwd=paths.evidence.parent,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=_TIMEOUT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise _failed(paths, f"took longer than {_TIMEOUT_SECONDS} s") from error
    if done.returncode != 0:
        output = done.stdout.strip()[-_LOG_CHARACTERS:]
        raise _failed(paths, f"ended with exit code {done.returncode}:\n{output}")


def _failed(paths: ReportPaths, how: str) -> RolloutError:
    return RolloutError(
        f"rendering the report {how}",
        remedy=f"The results are safe in {paths.evidence}; read them there.",
    )


def _tidy_junit(path: Path, evidence: Evidence) -> None:
    """Say when the gates ran rather than when they were rendered, and hide where.

    pytest words an error as a failed setup; here it is a gate that could not know, and its
    message is the first line of its text: `inconclusive: …`.
    """
    tree = ET.parse(path)  # noqa: S314 - written a moment ago by pytest
    for suite in tree.iter("testsuite"):
        suite.set("hostname", "localhost")
        suite.set("timestamp", evidence.started.isoformat())
        suite.set("time", f"{(evidence.finished - evidence.started).total_seconds():.3f}")
    for error in tree.iter("error"):
        error.set("message", (error.text or "inconclusive").partition("\n")[0])
    tree.write(path, encoding="utf-8", xml_declaration=True)
