"""pytest's hooks in a run that asks for gates: markers, parametrized gates, evidence at the end."""

import os
import shutil
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from vllm_rollout.gate_runs import URL_ONLY, identity
from vllm_rollout.judge import Outcome, worst
from vllm_rollout.model.errors import RolloutError
from vllm_rollout.model.evidence import write_evidence
from vllm_rollout.pytest_plugin import BUILT_IN_MARKERS, fixtures, marker_line
from vllm_rollout.pytest_plugin.fixtures import LOADS, OUTCOMES, SETTINGS
from vllm_rollout.pytest_plugin.gate_results import (
    BEFORE,
    PATH_ERRORS,
    Results,
    deserialize_record,
    record_of,
    record_result,
    serialize_record,
)
from vllm_rollout.pytest_plugin.gate_selection import (
    deployment_of,
    in_order,
    on_demand_left_out,
    parametrize,
    selection_problem,
    without_release,
)
from vllm_rollout.pytest_plugin.load_progress_line import emit, end_with_parent
from vllm_rollout.report.render import write_reports
from vllm_rollout.report.terminal import verdict_line
from vllm_rollout.settings import Settings, load_settings
from vllm_rollout.variables import option_or_environment

_USAGE = "vllm_rollout_usage_error"
_PROBLEM = pytest.StashKey[str]()


def pytest_configure(config: pytest.Config) -> None:
    """Resolve the settings and declare the environments' markers."""
    config.stash[LOADS] = {}
    config.stash[OUTCOMES] = {}
    try:
        settings = _load_settings(config)
    except RolloutError as error:
        problem = f"{error}\n{error.remedy}".rstrip()
        if _models(config):
            raise pytest.UsageError(problem) from error
        # Tests that are no gates must not mind a broken policy file; a gate will say it.
        config.stash[_PROBLEM] = problem
        return
    end_with_parent()
    config.stash[SETTINGS] = settings
    for environment in settings.policy.order:
        if environment not in BUILT_IN_MARKERS:
            config.addinivalue_line("markers", marker_line(environment))
    config.pluginmanager.register(fixtures, "vllm_rollout.pytest_plugin.fixtures")


@pytest.hookimpl(tryfirst=True, optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keep each deployment's gates on one worker, whatever `--dist` says: they share one load run.

    xdist's own groups do not do it: under pytest 9.2 `--dist loadgroup` groups nothing.
    """
    if SETTINGS not in config.stash:
        return None
    from vllm_rollout.pytest_plugin.scheduler import DeploymentScheduling

    environments = config.stash[SETTINGS].policy.order
    names = [f"{each}-{model}" for each in environments for model in _models(config)]
    return DeploymentScheduling(config, log, names=names)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrize every test that uses `deployment`."""
    if "deployment" not in metafunc.fixturenames or _is_of_another(metafunc):
        return
    if _PROBLEM in metafunc.config.stash:
        raise pytest.Collector.CollectError(metafunc.config.stash[_PROBLEM])
    parametrize(metafunc, metafunc.config.stash[SETTINGS], _models(metafunc.config))


def _is_of_another(metafunc: pytest.Metafunc) -> bool:
    """Return True if the test's `deployment` is not the suite's fixture, but one of its own."""
    # No public API says which fixture a name stands for; without it every one counts as ours.
    known: Any = getattr(metafunc, "_arg2fixturedefs", {}).get("deployment")
    return bool(known) and known[-1].func.__module__ != fixtures.__name__


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Order the gates, and refuse a selection that names no environment or no model."""
    if SETTINGS not in config.stash:
        return
    settings = config.stash[SETTINGS]
    if settings.platform is None and (out := without_release(items)):
        config.hook.pytest_deselected(items=out)
        items[:] = [item for item in items if item not in out]
    asked = {"marker_expression": config.getoption("markexpr", ""), "arguments": config.args}
    if out := on_demand_left_out(items, settings.policy, **asked):
        config.hook.pytest_deselected(items=out)
        items[:] = [item for item in items if item not in out]
    items[:] = in_order(items, settings.policy)
    problem = selection_problem(items, **asked)
    if not problem or config.getoption("collectonly"):
        return
    if hasattr(config, "workeroutput"):
        # An xdist worker cannot end the session: it hands the message to the controller.
        config.workeroutput[_USAGE] = problem
        items.clear()
    else:
        raise pytest.UsageError(problem)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Note which revision and build the gate starts on, and the path errors before it."""
    deployment = deployment_of(item)
    if deployment is not None:
        settings = item.config.stash[SETTINGS]
        item.stash[BEFORE] = identity(settings.platform, deployment)
        item.stash[PATH_ERRORS] = settings.path_errors(deployment)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Put the gate's result on its report."""
    report = yield
    deployment = deployment_of(item)
    if deployment is None:
        return report
    record_result(item, deployment, call, report)
    record = record_of(report)
    if record is not None and not record.result.skipped:
        outcomes, result = item.config.stash[OUTCOMES].setdefault(deployment, {}), record.result
        outcomes[result.gate] = worst([outcomes.get(result.gate, Outcome.PASS), result.outcome])
    return report


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable() -> Generator[None, Any, Any]:
    """Let a gate's record leave an xdist worker."""
    data = yield
    serialize_record(data or {})
    return data


@pytest.hookimpl(wrapper=True)
def pytest_report_from_serializable() -> Generator[None, object, object]:
    """Read a gate's record in the controller, once."""
    report = yield
    deserialize_record(report)
    return report


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Tell a listening parent how each gate ended."""
    record = record_of(report)
    if record is not None and "PYTEST_XDIST_WORKER" not in os.environ:
        result = record.result
        emit("gate", outcome=result.outcome.value, text=verdict_line(result))


def pytest_report_teststatus(
    report: pytest.CollectReport | pytest.TestReport,
) -> tuple[str, str, tuple[str, dict[str, bool]]] | None:
    """Show inconclusive as an outcome of its own: `?`, INCONCLUSIVE, counted apart."""
    record = record_of(report)
    inconclusive = record is not None and record.result.outcome is Outcome.INCONCLUSIVE
    if inconclusive and report.failed:
        return "inconclusive", "?", ("INCONCLUSIVE", {"yellow": True})
    return None


class _Controller:
    """Tasks of the controlling process: gather results, write reports, say where they are."""

    def __init__(self, config: pytest.Config) -> None:
        self._settings: Settings = config.stash[SETTINGS]
        self._results = Results(self._settings)
        self._usage = ""
        self._lines: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        record = record_of(report)
        if record is not None:
            self._results.add(record)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        self._usage = getattr(node, "workeroutput", {}).get(_USAGE, "") or self._usage

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self._usage:
            session.exitstatus = pytest.ExitCode.USAGE_ERROR
            return
        target = session.config.getoption("evidence")
        for evidence in self._results.evidence():
            if target:
                write_evidence(evidence, Path(target))
                self._keep_requests(evidence.model, Path(target).parent)
                continue
            folder = self._settings.report_dir / evidence.model / evidence.run_id
            self._lines += [verdict_line(gate) for run in evidence.runs for gate in run.gates]
            for run in evidence.runs:
                if run.platform == URL_ONLY:
                    self._lines.append(
                        f"{run.deployment}: pods were not asked for, --base-url names a server "
                        "and not a release (add --platform to gate a release)"
                    )
                if run.missing:
                    self._lines.append(
                        f"{run.deployment}: not run, so nothing may be promoted on this: "
                        + ", ".join(run.missing)
                    )
                if run.changed:
                    self._lines.append(f"{run.deployment}: {run.changed}")
            try:
                paths = write_reports(evidence, folder)
                self._keep_requests(evidence.model, folder)
                self._lines.append(f"{evidence.model}: {evidence.outcome.upper()}  {paths.html}")
            except (RolloutError, OSError) as error:
                self._lines.append(f"the report could not be written: {error}")
                session.exitstatus = session.exitstatus or pytest.ExitCode.INTERNAL_ERROR

    def _keep_requests(self, model: str, folder: Path) -> None:
        """Put the requests of the model's loads, where they were kept, beside its evidence."""
        for file in self._results.requests_files(model):
            shutil.move(file, folder / file.name)
            file.parent.rmdir()

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self._usage:
            terminalreporter.write_line(f"ERROR: {self._usage}", red=True)
        if self._lines:
            terminalreporter.section("gates")
            for line in self._lines:
                terminalreporter.write_line(line)


def pytest_sessionstart(session: pytest.Session) -> None:
    """Gather results where the session is controlled."""
    if not hasattr(session.config, "workerinput") and SETTINGS in session.config.stash:
        session.config.pluginmanager.register(_Controller(session.config))


def _load_settings(config: pytest.Config) -> Settings:
    settings = load_settings(
        policy_file=config.getoption("policy"),
        overrides=dict(_pair(text) for text in config.getoption("policy_set")),
        platform=config.getoption("platform"),
        namespace=config.getoption("namespace"),
        kube_context=config.getoption("kube_context"),
        base_url=config.getoption("base_url"),
        report_dir=config.getoption("report_dir"),
        workers=config.getoption("workers"),
        load_in_cluster=config.getoption("load_in_cluster"),
    )
    for model in _models(config):
        settings.deployment(model, settings.policy.order[0])
    return settings


def _models(config: pytest.Config) -> list[str]:
    given: list[str] = config.getoption("model")
    return given or [m for m in (option_or_environment("model", None) or "").split(",") if m]


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise pytest.UsageError(f"--policy-set {text!r}: write KEY=VALUE")
    return key, value
