"""Tells the CI system how a session of gates ended; see `report/ci.py`.

Nothing from an xdist worker, and nothing from the gates of a rollout: the rollout tells of them.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from vllm_rollout.judge import Outcome
from vllm_rollout.model.evidence import URL_ONLY, Evidence
from vllm_rollout.next_command import next_command, promote_command
from vllm_rollout.pytest_plugin.gate_collection import models_given
from vllm_rollout.pytest_plugin.gate_options import marker_words, option
from vllm_rollout.pytest_plugin.load_progress_line import EVENTS_VARIABLE
from vllm_rollout.report.changes import Comparison
from vllm_rollout.report.ci import tell_ci
from vllm_rollout.report.ci_summary import CiResult
from vllm_rollout.report.first_screen import deciding_run
from vllm_rollout.settings import Settings
from vllm_rollout.variables import report_folder


def tell_ci_of(
    config: pytest.Config,
    settings: Settings,
    found: Sequence[Evidence],
    comparisons: Mapping[str, Sequence[Comparison]],
    exit_code: int,
    problem: str,
) -> None:
    """Tell the CI system of each model's gates; of the problem where there is no evidence.

    `comparisons` are those of each model's report.
    """
    if not found:
        _tell_of_refusal(config, problem, exit_code)
        return
    results = []
    for evidence in found:
        page = settings.report_dir / evidence.model / evidence.run_id / "report.html"
        result = CiResult(
            model=evidence.model,
            environment=",".join(run.deployment.environment for run in evidence.runs),
            exit_code=int(exit_code),
            evidence=evidence,
            report=page if page.exists() else None,
            policy_file=option(config, "--policy") or "",
            next_command=command_after(settings, evidence),
            comparisons=comparisons.get(evidence.model, ()),
        )
        results.append(result)
    _tell(config, results, settings.report_dir)


@contextmanager
def refusals_reported_to_ci(config: pytest.Config) -> Iterator[None]:
    """Tell the CI system of a usage error, for which no gate is run."""
    try:
        yield
    except pytest.UsageError as error:
        _tell_of_refusal(config, str(error), pytest.ExitCode.USAGE_ERROR)
        raise


def _tell_of_refusal(config: pytest.Config, problem: str, exit_code: int) -> None:
    result = CiResult(
        model=",".join(models_given(config)),
        environment=",".join(sorted(marker_words(config))),
        exit_code=int(exit_code),
        problem=problem,
    )
    _tell(config, [result], report_folder(option(config, "--report-dir")))


def _tell(config: pytest.Config, results: Sequence[CiResult], folder: Path) -> None:
    if hasattr(config, "workerinput") or EVENTS_VARIABLE in os.environ:
        return
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    tell_ci(results, folder, reporter.write_line if reporter else print)


def command_after(settings: Settings, evidence: Evidence) -> str:
    """The command by which somebody goes on from there; empty where there is none."""
    run, order = deciding_run(evidence) or evidence.runs[-1], settings.policy.order
    environment = run.deployment.environment
    if evidence.outcome is not Outcome.PASS:
        return next_command("pytest", "-m", environment, "--model", evidence.model)
    following = order[order.index(environment) + 1 :]
    if run.platform == URL_ONLY or not following:
        return ""
    return promote_command(evidence.model, following[0])
