"""Rows of the list of runs: one run, its environments and its gates."""

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import cache
from typing import Any

from pydantic import TypeAdapter

from vllm_rollout.model.deployment import Build, Deployment
from vllm_rollout.model.errors import ExitCode
from vllm_rollout.model.evidence import Evidence, GateRun
from vllm_rollout.model.text import one_line
from vllm_rollout.model.verdict import Outcome, Verdict
from vllm_rollout.report.formatting import headline
from vllm_rollout.report.rows import ROLLOUT, report_items


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvironmentRow:
    """The gates of one environment: the build, and the figures that most decisions rest on."""

    environment: str
    outcome: Outcome
    revision: int | None
    build: str
    build_parts: dict[str, str | None]
    policy: str
    latency: Verdict | None = None
    error_rate: Verdict | None = None
    capacity: Verdict | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedGate:
    """One gate. `key` is the same in other runs, also in those of other models."""

    key: str
    environment: str
    title: str
    outcome: Outcome
    verdicts: tuple[Verdict, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRow:
    """One run. `evidence` is its digest, empty for a capacity search, whose file has none.

    `page` is its page's path below the reports folder, empty where there is none.
    """

    kind: str
    model: str
    run: str
    started: datetime
    finished: datetime
    outcome: Outcome
    verdict: str
    conclusion: str
    exit_code: int | None
    evidence: str
    page: str
    environments: tuple[EnvironmentRow, ...]
    gates: tuple[ListedGate, ...]

    @property
    def name(self) -> str:
        """The path of its folder below the reports folder."""
        return f"{self.model}/{self.run}"


def evidence_row(evidence: Evidence, page: str) -> RunRow:
    """The row of a run whose evidence was verified."""
    end = headline(evidence)
    return RunRow(
        kind="gates" if evidence.exit_code is None else "rollout",
        model=evidence.model,
        run=evidence.run_id,
        started=evidence.started,
        finished=evidence.finished,
        outcome=end.outcome,
        verdict=end.word,
        conclusion=end.sentence,
        exit_code=evidence.exit_code,
        evidence=evidence.digest,
        page=page,
        environments=tuple(_environment_row(run) for run in evidence.runs),
        gates=tuple(_gates(evidence)),
    )


def _environment_row(run: GateRun) -> EnvironmentRow:
    return EnvironmentRow(
        environment=run.deployment.environment,
        outcome=run.outcome,
        revision=run.revision,
        **_build(run.build),
        policy=run.policy_digest,
        latency=_figure(run, "latency", "s"),
        error_rate=_figure(run, "error_rate", "ratio"),
    )


def _build(build: Build | None) -> dict[str, Any]:
    return {
        "build": build.digest if build else "",
        "build_parts": asdict(build) if build else {},
    }


def _figure(run: GateRun, gate: str, unit: str) -> Verdict | None:
    """The first verdict of a gate that has a limit in that unit: the one on the whole load."""
    verdicts = (v for each in run.gates if each.gate == gate for v in each.verdicts)
    return next((v for v in verdicts if v.unit == unit and v.limit is not None), None)


def _gates(evidence: Evidence) -> Iterator[ListedGate]:
    of_model = re.compile(rf"-{re.escape(evidence.model)}(?=[-\]])")
    for item in report_items(evidence):
        if item.environment != ROLLOUT:
            yield ListedGate(
                key=of_model.sub("", item.node_id),
                environment=item.environment,
                title=item.title,
                outcome=item.outcome,
                verdicts=item.verdicts,
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class _CapacityFile:
    """The part of a `capacity.json` that is listed."""

    schema: int
    run_id: str
    deployment: Deployment
    revision: int | None
    build: Build | None
    policy_digest: str
    started: datetime
    finished: datetime
    verdict: Verdict
    exit_code: int


@cache
def _capacity_file() -> TypeAdapter[_CapacityFile]:
    return TypeAdapter(_CapacityFile)


def capacity_row(content: bytes, page: str) -> RunRow:
    """The row of a capacity search, from its `capacity.json`.

    Raises:
        ValueError: it is none, or of a later version.
    """
    found = _capacity_file().validate_json(content)
    if found.schema != 1:
        raise ValueError(f"its schema is {found.schema}, and this version reads 1")
    verdict, deployment = found.verdict, found.deployment
    interrupted = found.exit_code == ExitCode.INTERRUPTED
    return RunRow(
        kind="capacity",
        model=deployment.model,
        run=found.run_id,
        started=found.started,
        finished=found.finished,
        outcome=verdict.outcome,
        verdict="INTERRUPTED" if interrupted else verdict.outcome.upper(),
        conclusion=one_line(verdict.reason),
        exit_code=found.exit_code,
        evidence="",
        page=page,
        environments=(
            EnvironmentRow(
                environment=deployment.environment,
                outcome=verdict.outcome,
                revision=found.revision,
                **_build(found.build),
                policy=found.policy_digest,
                capacity=verdict,
            ),
        ),
        gates=(
            ListedGate(
                key=f"{deployment.environment}::capacity",
                environment=deployment.environment,
                title="Capacity",
                outcome=verdict.outcome,
                verdicts=(verdict,),
            ),
        ),
    )
