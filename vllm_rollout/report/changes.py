"""Changes since the last passing run of an environment: values, bounds, limits, build, policy."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from vllm_rollout.model.deployment import Deployment, short_digest
from vllm_rollout.model.errors import RolloutError
from vllm_rollout.model.evidence import RUN_ID, URL_ONLY, Evidence, GateRun, read_evidence
from vllm_rollout.model.text import one_line, shown
from vllm_rollout.model.units import format_value
from vllm_rollout.model.verdict import Outcome, Verdict
from vllm_rollout.report import formatting as words
from vllm_rollout.report.rows import gate_rows
from vllm_rollout.report.run_index import check_file

_MOST_RUNS = 40
_PARTS = {
    "image_digest": "image",
    "model_revision": "model revision",
    "chart_digest": "chart",
    "values_digest": "values",
    "served_digest": "what is rendered",
}
_SHORT = 24
"""Characters of a model revision or a digest that tell it from others."""

Kept = Callable[[Deployment], Iterable[Evidence]]
"""Evidence that is kept of a deployment, beside that in the reports folder: the newest first."""


def nothing_kept(_deployment: Deployment) -> Iterable[Evidence]:
    """Return no evidence: there is no store to read."""
    return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One thing then and now; `rise` by how much a figure rose, as a share of what it was."""

    subject: str
    before: str
    now: str
    rise: float | None = None

    @property
    def same(self) -> bool:
        """True if nothing to see has changed."""
        return self.before == self.now

    @property
    def text(self) -> str:
        """The change on one line."""
        return f"{self.subject}: {self.before} → {self.now} {rise_text(self.rise)}".rstrip()


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A gate run beside the last one that passed in its environment, `before` of `evidence`, if any
    is known.

    `unread` says what could not be read where it was looked for.
    """

    run: GateRun
    before: GateRun | None = None
    evidence: Evidence | None = None
    figures: tuple[Change, ...] = ()
    build: tuple[Change, ...] = ()
    unread: str = ""


def compare_runs(evidence: Evidence, folder: Path, kept: Kept) -> list[Comparison]:
    """One comparison for each environment that was gated, by its fullest run here, and the last of
    those.

    Earlier evidence is looked for in the reports beside `folder` and in what is `kept`.
    """
    latest = {run.deployment: run for run in evidence.runs}
    latest |= {run.deployment: run for run in sorted(evidence.runs, key=lambda r: len(r.gates))}
    found: dict[Deployment, _Pass] = {}
    problems: list[str] = []
    for earlier in _reports_beside(folder, evidence, problems):
        for deployment, run in latest.items():
            if deployment not in found and (known := _pass_in(earlier, evidence, run)):
                found[deployment] = known
        if found.keys() == latest.keys():
            break
    return [
        _compared(run, evidence, found.get(deployment), kept, problems)
        for deployment, run in latest.items()
    ]


_Pass = tuple[Evidence, GateRun]


def _pass_in(earlier: Evidence, evidence: Evidence, run: GateRun) -> _Pass | None:
    """The last pass of the run's environment in `earlier` evidence, which is not of this run.

    What a rollout took back has not passed, whatever its gates had found before.
    """
    lost = earlier.exit_code is not None and earlier.outcome is Outcome.FAIL
    undone = earlier.runs[-1].deployment if lost and len(earlier.runs) > 1 else None
    passed = [
        each
        for each in earlier.runs
        if each.deployment == run.deployment
        and each.outcome is Outcome.PASS
        and each.deployment != undone
        and _same_place(each, run)
        and each.finished.timestamp() <= run.started.timestamp()
        and _alike(each, run)
    ]
    return (earlier, passed[-1]) if passed and earlier.run_id != evidence.run_id else None


def _compared(
    run: GateRun, evidence: Evidence, reported: _Pass | None, kept: Kept, problems: list[str]
) -> Comparison:
    unread = list(problems)
    stored = None
    try:
        stored = next(
            filter(None, (_pass_in(each, evidence, run) for each in kept(run.deployment))), None
        )
    except Exception as error:  # noqa: BLE001 - whatever it is, the report is about this run
        unread.append(f"the evidence store cannot be read: {shown(str(error))}")
    known = [each for each in (reported, stored) if each is not None]
    if not known:
        return Comparison(run=run, unread="; ".join(unread))
    earlier, before = max(known, key=lambda each: each[1].finished.timestamp())
    return Comparison(
        run=run,
        before=before,
        evidence=earlier,
        figures=tuple(_figures(before, run)),
        build=tuple(_build(before, run)),
        unread="; ".join(unread),
    )


def _same_place(before: GateRun, now: GateRun) -> bool:
    """Return True unless another platform, or another server behind a URL alone, was gated."""
    same_server = now.platform != URL_ONLY or before.base_url == now.base_url
    return before.platform == now.platform and same_server


def _alike(before: GateRun, now: GateRun) -> bool:
    """Return True if the runs have most gates in common: preflight checks are no gate run."""
    gates = {gate.gate for gate in now.gates}
    common = gates & {gate.gate for gate in before.gates}
    return bool(common) and 2 * len(common) >= len(gates)


def _reports_beside(folder: Path, evidence: Evidence, problems: list[str]) -> Iterator[Evidence]:
    """Yield the evidence of the model's earlier runs in the folders beside this run's."""
    try:
        names = [each.name for each in folder.parent.iterdir() if RUN_ID.fullmatch(each.name)]
    except OSError as error:
        problems.append(f"{folder.parent.name} cannot be read: {error.strerror}")
        return
    for name in sorted((name for name in names if name < evidence.run_id), reverse=True)[
        :_MOST_RUNS
    ]:
        file = folder.parent / name / "evidence.json"
        try:
            if not file.is_file():
                continue
            check_file(file)
            found = read_evidence(file)
        except (RolloutError, OSError):
            problems.append(f"the evidence of run {name} cannot be read")
        else:
            if found.model == evidence.model:
                yield found


def _figures(before: GateRun, now: GateRun) -> Iterator[Change]:
    """Yield each figure that both runs have, each limit that differs, and gates only one has."""
    then = {row.anchor: row for row in gate_rows(before, "")}
    rows = {row.anchor: row for row in gate_rows(now, "")}
    for anchor, row in rows.items():
        old = then.get(anchor)
        if old is None:
            yield Change(subject=row.title, before="not gated", now=row.outcome.upper())
            continue
        if old.outcome is not row.outcome:
            yield Change(subject=row.title, before=old.outcome.upper(), now=row.outcome.upper())
        if len(old.verdicts) != len(row.verdicts):
            # Which of them belong together is not known.
            pairs = [(old.telling, row.telling)]
        else:
            pairs = list(zip(old.verdicts, row.verdicts, strict=True))
        for a, b in pairs:
            yield from _of_verdict(row.title, a, b)
    for anchor, row in then.items():
        if anchor not in rows:
            yield Change(subject=row.title, before=row.outcome.upper(), now="not gated")


def _of_verdict(title: str, before: Verdict, now: Verdict) -> Iterator[Change]:
    if (before.unit, before.percentile) != (now.unit, now.percentile):
        return
    if before.measured is not None and now.measured is not None:
        change = Change(
            subject=title,
            before=_value(before),
            now=_value(now),
            rise=_rise(before.measured, now.measured),
        )
        if now.confidence is not None or not change.same:
            yield change
    limits = words.limit_text(before), words.limit_text(now)
    if limits[0] != limits[1]:
        yield Change(subject=f"{title}: limit", before=limits[0], now=limits[1])


def _value(verdict: Verdict) -> str:
    bound = words.deciding_bound_text(verdict)
    value = words.measured_text(verdict)
    return value if bound == words.NONE else f"{value} ({bound})"


def _rise(before: float, now: float) -> float | None:
    if before <= 0 or not (math.isfinite(before) and math.isfinite(now)):
        return None
    return now / before - 1


def _build(before: GateRun, now: GateRun) -> Iterator[Change]:
    """Yield what of the build, the images, the policy and the revision differs."""
    if (before.build is None) != (now.build is None):
        yield Change(subject="build", before=_known(before), now=_known(now))
    elif before.build and now.build:
        then, here = asdict(before.build), asdict(now.build)
        for part, name in _PARTS.items():
            if then[part] != here[part]:
                yield Change(subject=name, before=_short(then[part]), now=_short(here[part]))
    pairs = (
        (
            "image that ran",
            ", ".join(map(_short, before.images)),
            ", ".join(map(_short, now.images)),
        ),
        ("policy", short_digest(before.policy_digest), short_digest(now.policy_digest)),
        ("revision", _number(before.revision), _number(now.revision)),
    )
    for name, old, new in pairs:
        if old != new:
            yield Change(subject=name, before=old or "not known", now=new or "not known")


def _known(run: GateRun) -> str:
    return run.build.short if run.build else "not known"


def _number(revision: int | None) -> str:
    return "" if revision is None else str(revision)


def _short(text: str | None) -> str:
    """The beginning of a digest or a name; of none that there is none."""
    if text is None:
        return "none"
    text = one_line(text.removeprefix("sha256:"))
    return text if len(text) <= _SHORT else f"{text[:_SHORT]}…"


def rise_text(rise: float | None) -> str:
    """`+3.2%`; empty where it is not known or nothing."""
    if rise is None or abs(rise) < 0.0005:
        return ""
    return f"{'+' if rise > 0 else '-'}{format_value(round(abs(rise), 3), 'ratio')}"
