"""The end of a session by its recorded verdicts: exit code, summary, reports, evidence.

All of it is derived here, and from the records alone: what marks, hooks and other plugins make of a
gate's test changes none of it.
"""

import shutil
from collections import defaultdict
from collections.abc import Generator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from vllm_rollout import __version__
from vllm_rollout.gate_runs import address_of, gate_run, identity
from vllm_rollout.judge import Outcome, worst
from vllm_rollout.model.deployment import Deployment
from vllm_rollout.model.errors import RolloutError
from vllm_rollout.model.evidence import (
    URL_ONLY,
    Evidence,
    GateResult,
    GateRun,
    new_run_id,
    write_evidence,
)
from vllm_rollout.model.units import of_total
from vllm_rollout.pytest_plugin import EXIT_CODE
from vllm_rollout.pytest_plugin.ci import command_after, tell_ci_of
from vllm_rollout.pytest_plugin.fixtures import SETTINGS
from vllm_rollout.pytest_plugin.gate_options import option
from vllm_rollout.pytest_plugin.gate_results import (
    LOAD_NAME,
    RECORDS,
    GateRecord,
    as_json,
    from_json,
    record_of,
)
from vllm_rollout.pytest_plugin.gate_selection import (
    deployment_in_id,
    deployment_of,
    expected_gates,
    gate_name,
    title_of,
)
from vllm_rollout.pytest_plugin.load_progress_line import emit
from vllm_rollout.report.changes import Comparison
from vllm_rollout.report.render import update_index, write_reports
from vllm_rollout.report.rows import change_unsaid
from vllm_rollout.report.terminal import gate_line, gates_in_words, run_lines

USAGE_ERROR = "vllm_rollout_usage_error"
"""Key of what an xdist worker refuses to run; it cannot end the session itself."""
_RECORDS_OF_WORKER = "vllm_rollout_records"


def send_to_controller(config: pytest.Config) -> None:
    """Hand a worker's records over, as some plugin may have kept reports from being sent."""
    if hasattr(config, "workeroutput"):
        records = [as_json(record) for record in config.stash[RECORDS]]
        config.workeroutput[_RECORDS_OF_WORKER] = records


class SessionResults:
    """Gathers what the gates of a session recorded, and ends the session by it.

    A plugin of the process that controls the session.
    """

    def __init__(self, config: pytest.Config, models: Sequence[str]) -> None:
        self._config = config
        self._settings = config.stash[SETTINGS]
        self._models = models
        self._started = datetime.now(UTC)
        self._records: dict[tuple[str, str], GateRecord] = {}
        self._planned: dict[str, tuple[Deployment, str]] = {}
        self._reported: set[str] = set()
        self._crashed: set[str] = set()
        config.stash[EXIT_CODE] = pytest.ExitCode.TESTS_FAILED  # until it is derived
        self._not_collected = False
        self._ended_by = "the session ended before it"
        self._usage = ""
        self._lines: list[str] = []
        self._comparisons: dict[str, Sequence[Comparison]] = {}

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._not_collected |= report.failed

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        for item in session.items:
            if (deployment := deployment_of(item)) is not None:
                self._planned[item.nodeid] = deployment, title_of(item)

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: Sequence[str]) -> None:
        for each in ids:
            if deployment := deployment_in_id(each, self._settings, self._models):
                self._planned[each] = deployment, each.rpartition("::")[2]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        record = record_of(report)
        if record is not None:
            self._add([record])
            self._emit_gate(record.node_id)
        elif report.when not in ("setup", "call", "teardown"):  # xdist's of a worker's crash
            self._crashed.add(report.nodeid)
            self._ended_by = str(report.longrepr)
        elif report.when == "call" and not hasattr(report, "context"):  # which a subtest's has
            self._reported.add(report.nodeid)  # no gate, whatever its id is like

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        output = getattr(node, "workeroutput", {})
        self._usage = output.get(USAGE_ERROR, "") or self._usage
        self._add([from_json(each) for each in output.get(_RECORDS_OF_WORKER, ())])

    def pytest_keyboard_interrupt(self, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
        self._ended_by = f"ended by {str(excinfo.value) or 'SIGINT'}"

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> Generator[None]:
        """Derive everything; the exit code once more after all others who may change it."""
        own = self._config.stash[RECORDS]
        self._add(own)
        if self._usage:
            session.exitstatus = pytest.ExitCode.USAGE_ERROR
        refused = session.exitstatus == pytest.ExitCode.USAGE_ERROR
        found = [] if refused or self._config.getoption("collectonly") else self._evidence()
        code = max([self._finish(each) for each in found], default=pytest.ExitCode.OK)
        if found and not option(self._config, "--evidence"):
            self._lines += filter(None, [update_index(self._settings.report_dir)])
        session.exitstatus = session.exitstatus or code
        self._config.stash[EXIT_CODE] = session.exitstatus
        yield
        session.exitstatus = session.exitstatus or code
        if found or self._usage or (self._not_collected and self._planned):
            problem = self._usage or "errors of collection: no gate was run"
            compared, ended = self._comparisons, session.exitstatus
            tell_ci_of(self._config, self._settings, found, compared, ended, problem)

    def pytest_terminal_summary(self, terminalreporter: "pytest.TerminalReporter") -> None:
        if self._usage:
            terminalreporter.write_line(f"ERROR: {self._usage}", red=True)
        if self._lines:
            terminalreporter.section("gates")
            for line in filter(None, (*self._lines, self._settings.note)):
                terminalreporter.write_line(line)

    def _emit_gate(self, node_id: str) -> None:
        """Emit the line of the item's gate, once all items of it have ended."""
        gate = self._gate_of(node_id)
        planned = {each for each in self._planned if self._gate_of(each) == gate}
        records = [r for r in self._records.values() if self._gate_of(r.node_id) == gate]
        if planned <= {record.node_id for record in records}:
            emit("gate", text=gate_line([record.result for record in records]))

    def _gate_of(self, node_id: str) -> tuple[str, tuple[Deployment, str] | None]:
        return node_id.partition("::")[0], self._planned.get(node_id)

    def _add(self, records: Sequence[GateRecord]) -> None:
        for record in records:
            self._records.setdefault((record.node_id, record.phase), record)

    def _finish(self, evidence: Evidence) -> pytest.ExitCode:
        """Write the evidence and its report, put it into words, and return the exit code."""
        part = worst([run.outcome_of_part for run in evidence.runs])
        code = pytest.ExitCode.OK if part is Outcome.PASS else pytest.ExitCode.TESTS_FAILED
        words = f"{evidence.model}: {_in_words(evidence, part)}"
        for run in evidence.runs:
            self._lines += _lines_of(run, verbose=self._config.get_verbosity() > 0)
        target = option(self._config, "--evidence")
        folder = self._settings.report_dir / evidence.model / evidence.run_id
        try:
            if target:
                write_evidence(evidence, Path(target))
                self._keep_requests(evidence.model, Path(target).parent)
                self._lines.append(words)
            else:
                last, policy = evidence.runs[-1].deployment, self._settings.policy
                signed_by = policy.for_model(last.model).sign_off_words(last.environment)
                paths = write_reports(evidence, folder, sign_off_words=signed_by)
                self._comparisons[evidence.model] = paths.comparisons
                self._keep_requests(evidence.model, folder)
                following = command_after(self._settings, evidence)
                if following and evidence.outcome is Outcome.PASS:
                    self._lines.append(f"next: {following}")
                self._lines.append(f"{words}  {paths.html}")
        except (RolloutError, OSError) as error:
            self._lines.append(
                f"{evidence.model}: the report could not be written ({error}); the gates: "
                + _in_words(evidence, part)
            )
            code = max(code, pytest.ExitCode.INTERNAL_ERROR)
        return code

    def _keep_requests(self, model: str, folder: Path) -> None:
        """Put the requests of the model's loads, where they were kept, beside its evidence."""
        kept = {r.requests for r in self._records.values() if r.deployment.model == model}
        for file in (Path(each) for each in kept if each):
            shutil.move(file, folder / file.name)
            file.parent.rmdir()

    def _evidence(self) -> list[Evidence]:
        """One evidence per model, its environments in the policy's order."""
        finished = datetime.now(UTC)
        records: dict[Deployment, list[GateRecord]] = defaultdict(list)
        for record in self._records.values():
            records[record.deployment].append(record)
        unrun = self._unrun(finished)
        by_model: dict[str, list[GateRun]] = defaultdict(list)
        order = self._settings.policy.order
        for each in sorted(records.keys() | unrun, key=lambda d: order.index(d.environment)):
            by_model[each.model].append(self._run(each, records[each], unrun[each], finished))
        return [
            Evidence(
                run_id=new_run_id(self._started),
                model=model,
                suite_version=__version__,
                started=self._started,
                finished=finished,
                runs=tuple(by_model[model]),
            )
            for model in sorted(by_model)
        ]

    def _unrun(self, now: datetime) -> dict[Deployment, list[GateResult]]:
        """Return a result for each gate that was selected and left none: it is inconclusive."""
        found: dict[Deployment, list[GateResult]] = defaultdict(list)
        recorded = ({key[0] for key in self._records} - self._crashed) | self._reported
        if self._not_collected and not self._records:
            return found
        for node_id, (deployment, title) in self._planned.items():
            if node_id not in recorded:
                path, _, item = node_id.partition("::")
                found[deployment].append(
                    GateResult(
                        gate=gate_name(Path(path)),
                        item=item,
                        title=title,
                        error=f"it did not run to its end: {self._ended_by}",
                        remedy="Run the gates again.",
                        started=now,
                        duration_seconds=0.0,
                    )
                )
        return found

    def _run(
        self,
        deployment: Deployment,
        records: Sequence[GateRecord],
        unrun: Sequence[GateResult],
        finished: datetime,
    ) -> GateRun:
        settings = self._settings
        load = next((record.load for record in records if record.load is not None), None)
        identities = [found for record in records for found in record.identities]
        address = records[0].base_url if records else address_of(settings, deployment)
        return gate_run(
            settings,
            deployment,
            base_url=address,
            identities=identities or [identity(None, deployment)],
            started=self._started,
            finished=finished,
            expected=expected_gates(
                settings.policy.for_model(deployment.model),
                deployment.environment,
                of_release=settings.platform is not None,
            ),
            results=[*(record.result for record in records), *unrun],
            loads={} if load is None else {LOAD_NAME: load},
        )


def _in_words(evidence: Evidence, part: Outcome) -> str:
    if part is not Outcome.PASS or evidence.outcome is Outcome.PASS:
        found = "; ".join(gates_in_words(run) for run in evidence.runs)
        return f"{evidence.outcome.upper()}: {found}"
    gates = sum(len({*run.expected, *(gate.gate for gate in run.gates)}) for run in evidence.runs)
    ran = gates - sum(len(run.missing) for run in evidence.runs)
    part_of = of_total(ran, gates, "gate")
    return f"PASS of the part that was run ({part_of}); nothing may be promoted on this"


def _lines_of(run: GateRun, *, verbose: bool) -> list[str]:
    lines = run_lines(run, verbose=verbose)
    if run.platform == URL_ONLY:
        lines.append(
            f"{run.deployment}: pods were not asked for, --base-url names a server "
            "and not a release (add --platform to gate a release)"
        )
    if run.missing:
        lines.append(
            f"{run.deployment}: not run, so nothing may be promoted on this: "
            + ", ".join(run.missing)
        )
    if changed := change_unsaid(run):
        lines.append(f"{run.deployment}: {changed}")
    return lines
