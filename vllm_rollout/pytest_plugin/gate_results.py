"""Evidence from pytest reports.

Each gate's report carries its `GateRecord`, as JSON only where it crosses from an xdist worker to
the controller, which alone writes evidence and reports.
"""

from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from vllm_rollout import __version__
from vllm_rollout.gate_runs import address_of, gate_run, identity
from vllm_rollout.judge import check
from vllm_rollout.model.deployment import Deployment, strict_json
from vllm_rollout.model.errors import RolloutError, UnreachableError
from vllm_rollout.model.evidence import Evidence, GateResult, GateRun, new_run_id
from vllm_rollout.model.load_figures import LoadSummary
from vllm_rollout.platform.base import PathErrors
from vllm_rollout.pytest_plugin.fixtures import LOADS, RECORDER, SETTINGS
from vllm_rollout.pytest_plugin.gate_selection import expected_gates, gate_of
from vllm_rollout.pytest_plugin.judged_load import JudgedLoad
from vllm_rollout.pytest_plugin.verdict_recorder import (
    GateFailedError,
    GateInconclusiveError,
    VerdictRecorder,
)
from vllm_rollout.report.load_summary import summarize_load
from vllm_rollout.settings import Settings

BEFORE = pytest.StashKey[dict[str, Any]]()
"""What the deployment ran before the gate, as `identity` gives it."""

PATH_ERRORS = pytest.StashKey[PathErrors]()
"""Connectivity errors on the path to the deployment before the gate."""

_ASKING = {"client", "servers"}
"""Fixtures of gates that send requests to the deployment themselves."""

_LOAD_NAME = "load"
_ATTRIBUTE = "gate_record"


@dataclass(frozen=True, slots=True, kw_only=True)
class GateRecord:
    """A gate's result, and what the run of its deployment's gates is made of besides.

    `identities` are of before and after the gate, as `identity` gives them. `requests` is where a
    line for each request of its load was left; empty where none was.
    """

    deployment: Deployment
    base_url: str
    identities: list[dict[str, Any]]
    result: GateResult
    load: LoadSummary | None = None
    requests: str = ""


_RECORD: TypeAdapter[GateRecord] = TypeAdapter(GateRecord)


def record_of(report: object) -> GateRecord | None:
    """The record that a report carries; None where it decides no gate."""
    found: GateRecord | None = getattr(report, _ATTRIBUTE, None)
    return found


def serialize_record(data: dict[str, Any]) -> None:
    """Turn the record in a serialized report into JSON-ready data."""
    if isinstance(record := data.get(_ATTRIBUTE), GateRecord):
        data[_ATTRIBUTE] = strict_json(_RECORD.dump_python(record, mode="json"))


def deserialize_record(report: object) -> None:
    """Turn the JSON-ready data on a deserialized report into the record."""
    if isinstance(data := getattr(report, _ATTRIBUTE, None), dict):
        setattr(report, _ATTRIBUTE, _RECORD.validate_python(data))


def record_result(
    item: pytest.Item,
    deployment: Deployment,
    call: pytest.CallInfo[None],
    report: pytest.TestReport,
) -> None:
    """Put the gate's result on `report`, if this phase decides it."""
    if report.when != "call" and report.passed:
        return
    settings = item.config.stash[SETTINGS]
    recorder = item.stash.get(RECORDER, None) or VerdictRecorder()
    verdicts = list(recorder.verdicts)
    raised = call.excinfo.value if call.excinfo else None
    if raised is not None and _ASKING & set(getattr(item, "fixturenames", ())):
        problem = settings.path_errors(deployment).since(item.stash[PATH_ERRORS])
        if problem is not None:
            raised, verdicts = problem, [v for v in verdicts if v.passed]
    unreachable = raised.address if isinstance(raised, UnreachableError) else ""
    error = _error(item, raised, report, judged=bool(verdicts))
    after = identity(settings.platform, deployment)
    if not unreachable and "unreachable" in after:
        # What was found is about a build that is not known.
        error, unreachable = error or after["unknown"], after["unreachable"]
    if report.passed and RECORDER not in item.stash:
        verdicts.append(check(True, "the test passed"))
    elif isinstance(raised, AssertionError):
        verdicts.append(check(False, str(raised)))
    load = item.config.stash[LOADS].get(deployment)
    if load is not None and "judged_load" not in getattr(item, "fixturenames", ()):
        load = None
    result = GateResult(
        gate=gate_of(item),
        item=item.name,
        title=_title(item),
        verdicts=tuple(verdicts),
        error=error,
        unreachable=unreachable,
        skipped=_skip_reason(report),
        load=_LOAD_NAME if load is not None else "",
        attachments=tuple(recorder.attachments),
        started=datetime.fromtimestamp(call.start, UTC),
        duration_seconds=call.duration,
    )
    if isinstance(raised, RolloutError):
        report.longrepr = f"{raised}\n{raised.remedy}".rstrip()
    if error and report.passed:
        report.outcome = "failed"
        report.longrepr = error
    record = GateRecord(
        deployment=deployment,
        base_url=address_of(settings, deployment),
        identities=[item.stash[BEFORE], after],
        result=result,
        load=None if load is None else _summary(load),
        requests="" if load is None else load.requests_file,
    )
    setattr(report, _ATTRIBUTE, record)


def _error(
    item: pytest.Item, raised: BaseException | None, report: pytest.TestReport, *, judged: bool
) -> str:
    """Return what kept the gate from a verdict; empty where it has one, or was skipped."""
    if isinstance(raised, UnreachableError):
        return str(raised)
    if isinstance(raised, GateInconclusiveError):
        return "" if judged else str(raised)
    if raised is not None and not report.skipped and not isinstance(raised, GateFailedError):
        return f"{type(raised).__name__}: {raised}"
    if report.passed and RECORDER in item.stash and not judged:
        return "the gate ended without a verdict: it judged nothing"
    return ""


def _summary(load: JudgedLoad) -> LoadSummary:
    name = Path(load.requests_file).name if load.requests_file else ""
    return summarize_load(load.result, stopped=load.stopped, requests_file=name)


def _skip_reason(report: pytest.TestReport) -> str:
    if not report.skipped:
        return ""
    place_and_reason = report.longrepr
    reason = place_and_reason[2] if isinstance(place_and_reason, tuple) else "skipped"
    return reason.removeprefix("Skipped: ")


def _title(item: pytest.Item) -> str:
    own = getattr(getattr(item, "function", None), "__doc__", None)
    doc = own or getattr(getattr(item, "module", None), "__doc__", None) or item.name
    return doc.strip().splitlines()[0]


class Results:
    """Collects the gate results of a session (on the controller) into evidence."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._started = datetime.now(UTC)
        self._records: dict[Deployment, list[GateRecord]] = defaultdict(list)

    def add(self, record: GateRecord) -> None:
        """Take one report's record."""
        self._records[record.deployment].append(record)

    def requests_files(self, model: str) -> set[Path]:
        """Return where the gates left a line for each request of the model's loads."""
        return {
            Path(record.requests)
            for deployment, records in self._records.items()
            for record in records
            if deployment.model == model and record.requests
        }

    def evidence(self) -> list[Evidence]:
        """One evidence per model, its environments in the policy's order."""
        finished = datetime.now(UTC)
        by_model: dict[str, list[GateRun]] = defaultdict(list)
        order = self._settings.policy.order
        for deployment in sorted(
            self._records, key=lambda d: (d.model, order.index(d.environment))
        ):
            by_model[deployment.model].append(self._run(deployment, finished))
        return [
            Evidence(
                run_id=new_run_id(self._started),
                model=model,
                suite_version=__version__,
                started=self._started,
                finished=finished,
                runs=tuple(runs),
            )
            for model, runs in by_model.items()
        ]

    def _run(self, deployment: Deployment, finished: datetime) -> GateRun:
        records = self._records[deployment]
        load = next((record.load for record in records if record.load is not None), None)
        return gate_run(
            self._settings,
            deployment,
            base_url=records[0].base_url,
            identities=[found for record in records for found in record.identities],
            started=self._started,
            finished=finished,
            expected=expected_gates(
                self._settings.policy.for_model(deployment.model),
                deployment.environment,
                of_release=self._settings.platform is not None,
            ),
            results=[record.result for record in records],
            loads={} if load is None else {_LOAD_NAME: load},
        )
