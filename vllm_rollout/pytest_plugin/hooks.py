"""pytest's hooks in a run that asks for gates: markers, parametrized gates, evidence at the end."""

from collections.abc import Generator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from vllm_rollout.gate_runs import identity, identity_and_differences
from vllm_rollout.judge import Outcome, Verdict, check, worst
from vllm_rollout.model.deployment import Deployment
from vllm_rollout.model.errors import RolloutError
from vllm_rollout.model.text import printable
from vllm_rollout.next_command import options_of_this_run
from vllm_rollout.policy import Override
from vllm_rollout.pytest_plugin import fixtures, marker_line
from vllm_rollout.pytest_plugin.ci import refusals_reported_to_ci
from vllm_rollout.pytest_plugin.fixtures import (
    LOADS,
    NO_TOKEN,
    OUTCOMES,
    READINGS,
    RECORDER,
    SETTINGS,
    no_load_because,
)
from vllm_rollout.pytest_plugin.gate_collection import (
    LABELS,
    asks_for_suites_gates,
    collect_gates,
    drop_foreign_fixtures,
    models_given,
    only_other_paths,
    only_team_gates_named,
    select,
)
from vllm_rollout.pytest_plugin.gate_options import (
    BUILT_IN_MARKERS,
    marker_words,
    models_of_variable,
    option,
)
from vllm_rollout.pytest_plugin.gate_results import (
    BEFORE,
    CALLING,
    PATH_ERRORS,
    RECORDS,
    RunAgainError,
    asks_for_tokens,
    deserialize_record,
    record_of,
    record_result,
    serialize_record,
    shows_no_token,
)
from vllm_rollout.pytest_plugin.gate_selection import (
    deployment_of,
    gate_of,
    is_bundled,
    judges_load,
    parametrize,
    title_of,
)
from vllm_rollout.pytest_plugin.load_progress_line import (
    WaitingLine,
    check_variables,
    end_by_signals,
    end_with_parent,
    keep_terminal,
)
from vllm_rollout.pytest_plugin.session_results import (
    USAGE_ERROR,
    SessionResults,
    send_to_controller,
)
from vllm_rollout.pytest_plugin.verdict_recorder import VerdictRecorder
from vllm_rollout.report.formatting import short_title
from vllm_rollout.resources import GATES
from vllm_rollout.serving import not_asked, why_not_asked
from vllm_rollout.settings import Settings, load_settings
from vllm_rollout.variables import option_or_environment, options_given

_PROBLEM = pytest.StashKey[str]()


def pytest_configure(config: pytest.Config) -> None:
    """Resolve the settings and declare the environments' markers."""
    with refusals_reported_to_ci(config):
        _configure(config)


def _configure(config: pytest.Config) -> None:
    config.stash[LOADS] = {}
    config.stash[READINGS] = {}
    config.stash[OUTCOMES] = {}
    config.stash[NO_TOKEN] = {}
    config.stash[RECORDS] = []
    repeated = ExitStack()
    repeated.enter_context(options_of_this_run(_options_given(config)))
    config.add_cleanup(repeated.close)
    try:
        settings = _load_settings(config)
        config.stash[LABELS] = settings.labels
        for model in models_given(config):
            settings.deployment(model, settings.policy.order[0])
    except RolloutError as error:
        problem = f"{error}\n{error.remedy}".rstrip()
        if models_given(config):
            raise pytest.UsageError(problem) from error
        # Tests that are no gates must not mind a broken policy file; a gate will say it.
        config.stash[_PROBLEM] = problem
        return
    check_variables()
    end_with_parent()
    end_by_signals(config)
    keep_terminal(config)
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

    return DeploymentScheduling(config, log, config.stash[SETTINGS], models_given(config))


@pytest.hookimpl(tryfirst=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrize every test that uses `deployment`."""
    if is_bundled(metafunc.definition.path):
        drop_foreign_fixtures(metafunc.definition)
    if "deployment" not in metafunc.fixturenames or _is_of_another(metafunc):
        return
    if _PROBLEM in metafunc.config.stash:
        raise pytest.Collector.CollectError(metafunc.config.stash[_PROBLEM])
    parametrize(metafunc, metafunc.config.stash[SETTINGS], models_given(metafunc.config))


def _is_of_another(metafunc: pytest.Metafunc) -> bool:
    """Return True if the test's `deployment` is not the suite's fixture, but one of its own."""
    # No public API says which fixture a name stands for; without it every one counts as ours.
    known: Any = getattr(metafunc, "_arg2fixturedefs", {}).get("deployment")
    return bool(known) and known[-1].func.__module__ != fixtures.__name__


@pytest.hookimpl(wrapper=True)
def pytest_collection(session: pytest.Session) -> Generator[None, object, object]:
    """Let pytest collect what is not among the suite's gates."""
    with only_other_paths(session.config):
        return (yield)


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Leave the suite's gates to the plugin's own collection."""
    if collection_path.name == GATES.name and collection_path.resolve() == GATES:
        return True
    return None


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_modifyitems(
    session: pytest.Session, config: pytest.Config, items: list[pytest.Item]
) -> Generator[None]:
    """Add the suite's gates, order all, and refuse what names no environment, model or gate."""
    with refusals_reported_to_ci(config):
        collected = 0
        if asks_for_suites_gates(config) and not only_team_gates_named(config, items):
            found = collect_gates(session)
            items += found
            collected = len(found)
        yield
        if SETTINGS not in config.stash:
            problem = config.stash[_PROBLEM] if not items and marker_words(config) else ""
        else:
            problem = select(config, items, collected)
        if not problem or config.getoption("collectonly"):
            return
        if hasattr(config, "workeroutput"):
            config.workeroutput[USAGE_ERROR] = problem
            items.clear()
        else:
            raise pytest.UsageError(problem)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> object:
    """Run a gate as pytest itself does, and once, whichever plugin would run it again."""
    if deployment_of(item) is None:
        return None
    runner: Any = item.config.pluginmanager.get_plugin("runner")
    if nextitem is not None and is_bundled(nextitem.path) and not is_bundled(item.path):
        nextitem = None  # as at a session's end: what a team's fixtures have set up goes down
    return runner.pytest_runtest_protocol(item, nextitem)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Note which revision and build the gate starts on, and the path errors before it."""
    deployment = deployment_of(item)
    if deployment is None:
        return
    if BEFORE in item.stash:
        raise RunAgainError("a gate runs once", pytrace=False)
    if is_bundled(item.path):
        drop_foreign_fixtures(item)
    settings = item.config.stash[SETTINGS]
    item.stash[PATH_ERRORS] = settings.path_errors(deployment)
    if withheld := _withheld(item, deployment):
        item.stash[BEFORE] = {}
        item.stash.setdefault(RECORDER, VerdictRecorder())(withheld)
    # Preflight checks are about a build that is not there yet.
    look = identity if gate_of(item).startswith("preflight") else identity_and_differences
    item.stash[BEFORE] = look(settings.platform, deployment)


def _withheld(item: pytest.Item, deployment: Deployment) -> Verdict | None:
    """Return the verdict of a gate that is not asked: what it needs is known to be missing."""
    if (why := item.config.stash[NO_TOKEN].get(deployment)) and asks_for_tokens(item, deployment):
        return not_asked(why)
    if judges_load(item) and (why := no_load_because(item.config, deployment)):
        return check(None, why)
    return None


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None]:
    """Call a gate once."""
    if deployment_of(item) is None:
        yield
        return
    if CALLING in item.stash:
        raise RunAgainError("a gate runs once", pytrace=False)
    item.stash[CALLING] = True
    try:
        with WaitingLine(item.config, short_title(title_of(item))):
            yield
    finally:
        item.stash[CALLING] = False


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Put the gate's result on its report."""
    report = yield
    deployment = deployment_of(item)
    if deployment is None:
        return report
    record_result(item, deployment, call, report)
    # What a gate printed may be a model's words, and a CI system reads what pytest prints.
    report.sections = [(name, printable(text)) for name, text in report.sections]
    record = record_of(report)
    if record is not None and not record.result.skipped:
        result = record.result
        if not judges_load(item):
            outcomes = item.config.stash[OUTCOMES].setdefault(deployment, {})
            outcomes[result.gate] = worst([outcomes.get(result.gate, Outcome.PASS), result.outcome])
        if shows_no_token(item, deployment, result):
            met = why_not_asked(short_title(result.title), unreachable=bool(result.unreachable))
            item.config.stash[NO_TOKEN].setdefault(deployment, met)
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


def pytest_report_teststatus(
    report: pytest.CollectReport | pytest.TestReport,
) -> tuple[str, str, tuple[str, dict[str, bool]]] | None:
    """Show inconclusive as an outcome of its own: `?`, INCONCLUSIVE, counted apart."""
    record = record_of(report)
    inconclusive = record is not None and record.result.outcome is Outcome.INCONCLUSIVE
    if inconclusive and report.failed:
        return "inconclusive", "?", ("INCONCLUSIVE", {"yellow": True})
    return None


def pytest_sessionstart(session: pytest.Session) -> None:
    """Gather results where the session is controlled."""
    config = session.config
    if not hasattr(config, "workerinput") and SETTINGS in config.stash:
        results = SessionResults(config, models_given(config))
        config.pluginmanager.register(results, "vllm_rollout.pytest_plugin.results")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Hand a worker's records to the controller."""
    send_to_controller(session.config)


def _load_settings(config: pytest.Config) -> Settings:
    return load_settings(
        policy_file=option(config, "--policy"),
        overrides=dict(_pair(text) for text in option(config, "--policy-set")),
        platform=option(config, "--platform"),
        namespace=option(config, "--namespace"),
        kube_context=option(config, "--kube-context"),
        base_url=option(config, "--base-url"),
        report_dir=option(config, "--report-dir"),
        workers=option(config, "--workers"),
        load_in_cluster=option(config, "--load-in-cluster"),
        confidence=option(config, "--confidence"),
        models=option(config, "--model") or models_of_variable(),
    )


def _options_given(config: pytest.Config) -> list[tuple[str, str]]:
    """The options and variables of this run that a printed command repeats."""
    url = option_or_environment("base-url", option(config, "--base-url"))
    given = options_given(
        policy=option(config, "--policy"),
        platform=option(config, "--platform"),
        namespace=option(config, "--namespace"),
        kube_context=option(config, "--kube-context"),
        changes=option(config, "--policy-set"),
    )
    return [*given, ("--base-url", url)] if url else given


def _pair(text: str) -> tuple[str, Override]:
    key, equals, value = text.partition("=")
    if not equals:
        raise pytest.UsageError(f"--policy-set {text!r}: write KEY=VALUE")
    return key, Override(value, "--policy-set")
