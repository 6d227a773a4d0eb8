"""The record of one gate, from its recorded verdicts and from how its test ended.

It goes onto the test's report, which says what the record says; `session_results.py` says what
follows from all of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import TypeAdapter

from vllm_rollout.gate_runs import address_of, identity
from vllm_rollout.judge import Outcome, Verdict, check
from vllm_rollout.model.deployment import Deployment, strict_json
from vllm_rollout.model.errors import RolloutError, UnreachableError
from vllm_rollout.model.evidence import GateResult
from vllm_rollout.model.load_figures import LoadSummary
from vllm_rollout.model.text import printable
from vllm_rollout.platform.base import PathErrors
from vllm_rollout.pytest_plugin.fixtures import LOADS, RECORDER, SETTINGS
from vllm_rollout.pytest_plugin.gate_selection import (
    gate_of,
    is_bundled,
    judges_load,
    title_of,
    uses,
)
from vllm_rollout.pytest_plugin.verdict_recorder import (
    GateFailedError,
    GateInconclusiveError,
    VerdictRecorder,
)
from vllm_rollout.report.terminal import verdict_line

BEFORE = pytest.StashKey[dict[str, Any]]()
"""What the deployment ran before the gate, as `identity` gives it."""

PATH_ERRORS = pytest.StashKey[PathErrors]()
"""Connectivity errors on the path to the deployment before the gate."""

_ASKING = {"client", "servers"}
"""Fixtures of gates that send requests to the deployment themselves."""
_ROUTER = "router"
"""Fixture of the gate that asks the users' address, which may be another."""
_SKIPS: Any = (pytest.skip.Exception, pytest.xfail.Exception)
CALLING = pytest.StashKey[bool]()
"""True while the gate's test is called, False afterwards."""
_IN_SUBTESTS = pytest.StashKey[list[BaseException]]()
_SEEN = pytest.StashKey[int]()
"""How many of the gate's verdicts are in its record."""
_BEGAN = pytest.StashKey[float]()

LOAD_NAME = "load"
_ATTRIBUTE = "gate_record"


@dataclass(frozen=True, slots=True, kw_only=True)
class GateRecord:
    """A gate's result, and what the run of its deployment's gates is made of besides.

    `identities` are of before and after the gate, as `identity` gives them. `requests` is where a
    line for each request of its load was left; empty where none was.
    """

    node_id: str
    phase: str
    deployment: Deployment
    base_url: str
    identities: list[dict[str, Any]]
    result: GateResult
    load: LoadSummary | None = None
    requests: str = ""


RECORDS = pytest.StashKey[list[GateRecord]]()
"""The records of the gates that this process ran."""
_RECORD = pytest.StashKey[GateRecord]()
_ADAPTER: TypeAdapter[GateRecord] = TypeAdapter(GateRecord)


def asks_for_tokens(item: pytest.Item, deployment: Deployment) -> bool:
    """Return True if the gate needs answers from the deployment's own address."""
    if is_bundled(item.path) and uses(item, _ROUTER):
        policy = item.config.stash[SETTINGS].policy.for_model(deployment.model)
        smoke = policy.environments[deployment.environment].gates.smoke
        return not (smoke and smoke.url)
    return uses(item, *_ASKING) or judges_load(item)


def shows_no_token(item: pytest.Item, deployment: Deployment, result: GateResult) -> bool:
    """Return True if the gate showed that nobody gets a token from the deployment."""
    recorder = item.stash.get(RECORDER, None)
    if recorder is not None and recorder.no_token:
        return asks_for_tokens(item, deployment)
    settings = item.config.stash[SETTINGS]
    # Where only the platform knows the address, nothing is asked without it.
    asked = _ASKING if settings.base_url else {*_ASKING, "cluster"}
    return bool(result.unreachable) and uses(item, *asked)


def record_of(report: object) -> GateRecord | None:
    """The record that a report carries; None where it decides no gate."""
    found: GateRecord | None = getattr(report, _ATTRIBUTE, None)
    return found


def serialize_record(data: dict[str, Any]) -> None:
    """Turn the record in a serialized report into JSON-ready data."""
    if isinstance(record := data.get(_ATTRIBUTE), GateRecord):
        data[_ATTRIBUTE] = as_json(record)


def deserialize_record(report: object) -> None:
    """Turn the JSON-ready data on a deserialized report into the record."""
    if isinstance(data := getattr(report, _ATTRIBUTE, None), dict):
        setattr(report, _ATTRIBUTE, from_json(data))


def as_json(record: GateRecord) -> Any:
    """The record as JSON-ready data."""
    return strict_json(_ADAPTER.dump_python(record, mode="json"))


def from_json(data: Any) -> GateRecord:
    """The record in JSON-ready data."""
    return _ADAPTER.validate_python(data)


def put_on_report(report: pytest.TestReport, record: GateRecord) -> None:
    """Make the report say what the gate's record says, whatever the test's marks make of it.

    A pass is passed; all else is failed. What is inconclusive is an error of the setup, a fail one
    of the call: so JUnit tells an error from a failure, as the suite's own report does.
    """
    setattr(report, _ATTRIBUTE, record)
    vars(report).pop("wasxfail", None)
    if record.result.outcome is Outcome.PASS:
        report.outcome = "passed"
        return
    if not report.failed:
        report.outcome = "failed"
        report.longrepr = verdict_line(record.result)
    if report.when != "teardown":
        report.when = "call" if record.result.outcome is Outcome.FAIL else "setup"


class RunAgainError(GateInconclusiveError):
    """A plugin runs a gate again. It runs once: what was recorded then is reported again."""


def record_result(
    item: pytest.Item,
    deployment: Deployment,
    call: pytest.CallInfo[None],
    report: pytest.TestReport,
) -> None:
    """Put the gate's result on `report`, if this phase decides it."""
    began = item.stash.setdefault(_BEGAN, call.start)
    if call.excinfo and isinstance(call.excinfo.value, RunAgainError) and _RECORD in item.stash:
        put_on_report(report, item.stash[_RECORD])
        return
    raised = call.excinfo.value if call.excinfo else None
    in_subtests = item.stash.setdefault(_IN_SUBTESTS, [])
    if item.stash.get(CALLING, False):  # one of its subtests: the gate's record is yet to come
        in_subtests += [raised] if raised else []
        return
    recorder = item.stash.get(RECORDER, None) or VerdictRecorder()
    verdicts = list(recorder.verdicts)
    seen = item.stash.get(_SEEN, 0)
    swallowed = report.when == "teardown" and not all(v.passed for v in verdicts[seen:])
    if report.when != "call" and report.passed and not swallowed:
        return
    item.stash[_SEEN] = len(verdicts)
    settings = item.config.stash[SETTINGS]
    failed = [each for each in (*in_subtests, raised) if isinstance(each, AssertionError)]
    in_subtests = [e for e in in_subtests if not isinstance(e, (AssertionError, GateFailedError))]
    raised = raised or next(iter(in_subtests), None)
    if raised is not None and uses(item, *_ASKING):
        problem = settings.path_errors(deployment).since(item.stash[PATH_ERRORS])
        if problem is not None:
            raised, verdicts = problem, [v for v in verdicts if v.passed]
    unreachable = raised.address if isinstance(raised, UnreachableError) else ""
    error = _error(raised, report, verdicts)
    asked = item.stash.get(BEFORE, None) != {}
    after = identity(settings.platform, deployment) if asked else {}
    if not unreachable and "unreachable" in after:
        # What was found is about a build that is not known.
        error, unreachable = error or after["unknown"], after["unreachable"]
    verdicts += [check(False, str(each)) for each in failed]
    load = item.config.stash[LOADS].get(deployment)
    if load is not None and not judges_load(item):
        load = None
    result = GateResult(
        gate=gate_of(item),
        item=item.name,
        title=title_of(item),
        verdicts=tuple(verdicts),
        error=error,
        unreachable=unreachable,
        remedy=raised.remedy if isinstance(raised, RolloutError) else "",
        skipped=_skip_reason(raised),
        load=LOAD_NAME if load is not None else "",
        attachments=tuple(recorder.attachments),
        started=datetime.fromtimestamp(began, UTC),
        duration_seconds=call.duration if report.when == "teardown" else call.stop - began,
    )
    if isinstance(raised, RolloutError):
        report.longrepr = printable(f"{raised}\n{raised.remedy}".rstrip())
    record = GateRecord(
        node_id=item.nodeid,
        phase=report.when,
        deployment=deployment,
        base_url=address_of(settings, deployment),
        identities=[item.stash.get(BEFORE, after), after] if asked else [],
        result=result,
        load=None if load is None else load.summary,
        requests="" if load is None else load.requests_file,
    )
    item.stash.setdefault(_RECORD, record)
    item.config.stash[RECORDS].append(record)
    put_on_report(report, record)


def _error(
    raised: BaseException | None, report: pytest.TestReport, verdicts: Sequence[Verdict]
) -> str:
    """Return what kept the gate from a verdict; empty where it has one, or was skipped."""
    if isinstance(raised, UnreachableError):
        return str(raised)
    if isinstance(raised, GateInconclusiveError):
        return str(raised) if all(verdict.passed for verdict in verdicts) else ""
    if raised is not None:
        known = isinstance(raised, (GateFailedError, *_SKIPS))
        return "" if known else f"{type(raised).__name__}: {raised}"
    if report.failed:  # without an exception: a mark or a hook made it so
        return str(report.longrepr)
    return "" if verdicts else "the gate ended without a verdict: it judged nothing"


def _skip_reason(raised: BaseException | None) -> str:
    if not isinstance(raised, _SKIPS):
        return ""
    return str(raised) or "skipped without a reason"
