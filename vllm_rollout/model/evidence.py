"""Evidence: all verdicts and observations of one run, with the build they are about.

`evidence.json` is the one source of every report: HTML, JUnit and the deployment record are
rendered from it, so they cannot disagree. It is addressed by the SHA-256 of its content, lists the
digests of its gate runs, and names the evidence of the same run that it has grown from.
"""

import json
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from vllm_rollout.model.deployment import (
    Build,
    Deployment,
    Revision,
    canonical_digest,
    strict_json,
)
from vllm_rollout.model.errors import ExitCode, UsageError
from vllm_rollout.model.load_figures import LoadSummary
from vllm_rollout.model.text import printable, shown
from vllm_rollout.model.verdict import Outcome, Verdict, worst

SCHEMA = 2
"""Schema of what is written; evidence of every schema before is read as well.

It is another when what was written before would be read as something else. A field with a default
needs none: a digest is of the document, and never of what was read from it.
"""


def new_run_id(now: datetime) -> str:
    """A run's name: when it began (UTC) and four hex digits against collisions."""
    return f"{now:%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


URL_ONLY = "url"
"""What stands for the platform where only a URL was given; nothing is promoted from there."""

RUN_ID = re.compile(r"\d{8}-\d{6}-[0-9a-f]{4}")
"""A run's name: by name, runs are in the order of time."""


class LaterSchemaError(UsageError):
    """Evidence that a later version of this suite wrote, `written_by`; `intact` if it has its
    digest."""

    def __init__(self, name: str, schema: int, written_by: object, *, intact: bool) -> None:
        changed = "" if intact else ", or was changed after it was written: it has another digest"
        super().__init__(
            f"{name} is evidence of schema {schema}, and this version reads those up to {SCHEMA}"
            + changed,
            remedy=f"Update to version {shown(str(written_by), 20)} of vllm-rollout or later.",
        )
        self.intact = intact


@dataclass(frozen=True, slots=True, kw_only=True)
class Attachment:
    """Text shown beside a gate (a model's answer, log lines). Untrusted: escaped where shown."""

    title: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GateResult:
    """Result of one gate for one deployment.

    `error` is the exception that kept the gate from a verdict, `unreachable` the address that did
    not answer, `skipped` why it was not run; each of them makes the outcome inconclusive.
    """

    gate: str
    item: str
    title: str
    verdicts: tuple[Verdict, ...] = ()
    error: str = ""
    unreachable: str = ""
    remedy: str = ""
    """What to do about the error, where it says so itself."""
    skipped: str = ""
    load: str = ""
    """Name of the load run (a key of `GateRun.loads`) the gate judged, or empty."""
    attachments: tuple[Attachment, ...] = ()
    started: datetime
    duration_seconds: float

    @property
    def outcome(self) -> Outcome:
        """A fail stands; without one, anything that kept the gate from knowing is inconclusive."""
        judged = worst([v.outcome for v in self.verdicts])
        if judged is not Outcome.FAIL and (self.error or self.unreachable or self.skipped):
            return Outcome.INCONCLUSIVE
        return judged


@dataclass(frozen=True, slots=True, kw_only=True)
class GateRun:
    """The gates of one environment, about one build at one revision.

    `changed` is empty, or says what changed under the gates while they ran (another revision or
    build appeared), or that it could not be read; the run is inconclusive then, whatever its gates
    reported.
    """

    deployment: Deployment
    base_url: str
    platform: str
    revision: int | None
    build: Build | None
    policy_digest: str
    confidence: float | None = None
    """The policy's: what the risk of the whole run follows from."""
    family_risk: str = "none"
    """How the run's fails share one risk (`vllm_rollout.judge.multiple_testing`)."""
    started: datetime
    finished: datetime
    expected: tuple[str, ...]
    """Gates the policy asks for in this environment, whether or not they ran."""
    gates: tuple[GateResult, ...]
    loads: dict[str, LoadSummary]
    changed: str = ""
    unread: bool = False
    """True if `changed` says only what could not be read: nothing is known to have changed."""
    images: tuple[str, ...] = ()
    """Digests of the images that the replicas really ran; empty where they are not known."""
    revision_created: datetime | None = None
    """When the revision was made: its number alone may be another's, once a release was removed.
    None in evidence from before that was kept."""

    def is_about(self, revision: Revision) -> bool:
        """True if the gates were of that revision, which has its number, time and build."""
        same = (self.revision, self.build) == (revision.number, revision.build)
        if self.revision_created is None:
            return same and revision.created <= self.started
        return same and revision.was_made(self.revision_created)

    @property
    def missing(self) -> tuple[str, ...]:
        """Gates the policy asks for and the run has no result of."""
        ran = {g.gate for g in self.gates}
        return tuple(g for g in self.expected if g not in ran)

    @property
    def outcome_of_part(self) -> Outcome:
        """Outcome of the gates that ran, whether or not they are all: nothing is promoted on it."""
        outcomes = [g.outcome for g in self.gates]
        return worst([*outcomes, Outcome.INCONCLUSIVE] if self.changed else outcomes)

    @property
    def outcome(self) -> Outcome:
        """Pass only if every expected gate ran and passed on one unchanged build."""
        part = self.outcome_of_part
        return worst([part, Outcome.INCONCLUSIVE]) if self.missing else part

    @property
    def unreachable(self) -> str:
        """The first address that did not answer, or empty."""
        return next((g.unreachable for g in self.gates if g.unreachable), "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Something the rollout did or saw, in order of time. `outcome` is None for plain progress."""

    at: datetime
    title: str
    detail: str = ""
    outcome: Outcome | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Override:
    """An emergency: who had which conditions of a promotion passed over, and why."""

    by: str
    reason: str
    passed_over: tuple[str, ...]


class Kept:
    """The document that something was read from, and its digest. `replace` takes on neither."""

    __slots__ = ("kept", "kept_as")


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence(Kept):
    """One run: the gate runs in order, and, for a rollout, its steps and end."""

    schema: int = SCHEMA
    run_id: str
    model: str
    suite_version: str
    started: datetime
    finished: datetime
    runs: tuple[GateRun, ...]
    steps: tuple[Step, ...] = ()
    conclusion: str = ""
    """One sentence: how the run ended. Empty for gates run alone."""
    exit_code: int | None = None
    """Exit code of the rollout (see `ExitCode`), None for gates run alone."""
    override: Override | None = None
    """The emergency override of the rollout, if there was one."""
    awaits_sign_off: bool = False
    """Whether nothing but a sign-off is missing for the promotion that the run is about."""
    previous: str = ""
    """Digest of the evidence that this one has grown from; empty in the first of a run."""
    sign_off: str = ""
    """Whose sign-off the rollout rests on, and what proves whose it is; empty for nobody's."""

    @property
    def outcome(self) -> Outcome:
        """Outcome of the rollout, by its exit code, if it was one; else of its gate runs."""
        if self.exit_code is None:
            return worst([run.outcome for run in self.runs])
        if self.exit_code == ExitCode.OK:
            return Outcome.PASS
        unknown = (ExitCode.INCONCLUSIVE, ExitCode.UNREACHABLE, ExitCode.INTERRUPTED)
        return Outcome.INCONCLUSIVE if self.exit_code in unknown else Outcome.FAIL

    @property
    def unsignable(self) -> str:
        """Why no promotion may rest on it, so that nobody signs it off; "" if one may.

        A run that waits for a sign-off, or for anything else, ends as inconclusive.
        """
        if self.exit_code not in (None, ExitCode.OK, ExitCode.INCONCLUSIVE):
            return f"its run ended with exit code {self.exit_code}: {self.conclusion}"
        failed = [run for run in self.runs if run.outcome is not Outcome.PASS]
        if failed or not self.runs:
            where = failed[0].deployment.environment if failed else ""
            return f"its {where} gates did not pass" if where else "it holds no gates"
        return ""

    @property
    def digest(self) -> str:
        """`sha256:<hex>` of the content, in which each gate run stands by its own digest.

        Of evidence that was read it is that of the document, as another version may have written
        it.
        """
        return getattr(self, "kept_as", "") or canonical_digest(documents(self)[0])


_ADAPTER: TypeAdapter[Evidence] = TypeAdapter(Evidence)


def as_json(evidence: Evidence) -> dict[str, Any]:
    """The evidence as JSON-ready data."""
    data: dict[str, Any] = strict_json(_ADAPTER.dump_python(evidence, mode="json"))
    data = _printable(data)
    for name in ("override", "sign_off", "awaits_sign_off"):
        if not data[name]:
            del data[name]
    for run in data["runs"]:
        if run["build"] and run["build"]["served_digest"] is None:
            del run["build"]["served_digest"]  # as `Build.parts` leaves it out
    # The runs are in `runs`; their digests stand for them in the evidence's own.
    gate_runs = [canonical_digest(run) for run in data["runs"]]
    return {**data, "schema": SCHEMA, "gate_runs": gate_runs}


_SAID = frozenset(
    ("reason", "remedy", "error", "title", "text", "detail", "conclusion", "changed", "skipped",
     "unreachable", "passed_over", "sign_off")
)  # fmt: skip
"""Fields of sentences and of text from outside. What else there is are names and numbers."""


def _printable(value: Any, name: str = "") -> Any:
    if isinstance(value, dict):
        return {key: _printable(inner, key) for key, inner in value.items()}
    if isinstance(value, list):
        return [_printable(inner, name) for inner in value]
    return printable(value) if name in _SAID and isinstance(value, str) else value


def documents(evidence: Evidence) -> tuple[dict[str, Any], dict[str, Any]]:
    """The document that the evidence's digest is of, and each gate run that it lists by digest."""
    data = as_json(evidence)
    return data, dict(zip(data["gate_runs"], data.pop("runs"), strict=True))


def verified(
    document: Any, digest: str, name: str, run_of: Callable[[str], Any] = lambda _digest: None
) -> Evidence:
    """The evidence of `document`, once its content is found to have that digest.

    `run_of` gives the gate run of a digest, which is computed again as well. This is the only way
    to evidence that was kept: in a file (`read_evidence`) or in a platform's store.

    Raises:
        UsageError: the content is another's, of a later schema, or no evidence; with its `name`.
    """
    try:
        schema = document.get("schema")
        if isinstance(schema, int) and schema > SCHEMA:
            intact = canonical_digest(document) == digest
            raise LaterSchemaError(name, schema, document.get("suite_version"), intact=intact)
        _check_digest(document, digest, name)
        _check_schema(schema)
        whole = document
        if schema > 1:  # the gate runs of which are documents of their own
            runs = [run_of(each) for each in document["gate_runs"]]
            for each, run in zip(document["gate_runs"], runs, strict=True):
                _check_digest(run, each, f"gate run {each} of {name}")
            whole = {**document, "runs": runs}
        evidence = _ADAPTER.validate_python(whole)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UsageError(
            f"{name} is not evidence of schema {SCHEMA} or before: {error}",
            remedy="Run the gates again; they write new evidence.",
        ) from error
    object.__setattr__(evidence, "kept_as", digest)
    object.__setattr__(evidence, "kept", whole)
    return evidence


def _check_schema(schema: Any) -> None:
    if type(schema) is not int or not 1 <= schema <= SCHEMA:
        raise ValueError(f"its schema is {schema!r}")


def _check_digest(document: Any, digest: str, name: str) -> None:
    content = canonical_digest(document)
    if content != digest:
        raise UsageError(
            f"{name} was changed after it was written: its content is {content}, "
            f"it claims {digest}",
            remedy="Use the original, or run the gates again.",
        )


def write_evidence(evidence: Evidence, path: Path) -> None:
    """Write `evidence` with its digest to `path`, whole or not at all.

    What was read is written as it was: another version may have put it in other words.
    """
    content = getattr(evidence, "kept", None) or as_json(evidence)
    document = {"digest": evidence.digest, "evidence": content}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(
        json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8"
    )
    partial.replace(path)


def read_evidence(path: Path) -> Evidence:
    """Read an `evidence.json` and check it against its digest.

    Raises:
        UsageError: no such file, not evidence, or changed since it was written.
    """
    try:
        file = json.loads(path.read_text(encoding="utf-8"))
        document, digest, runs = dict(file["evidence"]), file["digest"], []
        if document.get("schema") != 1:  # which has its runs in the document itself
            runs = [(canonical_digest(run), run) for run in document.pop("runs", ())]
    except OSError as error:
        raise UsageError(f"cannot read evidence {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UsageError(
            f"{path} is not evidence: {error}",
            remedy="Run the gates again; they write evidence.json into the report folder.",
        ) from error
    evidence = verified(document, digest, str(path), dict(runs).get)
    if [each for each, _ in runs] != document.get("gate_runs", []):
        raise UsageError(
            f"{path} was changed after it was written: its gate runs are not those that it lists",
            remedy="Use the original, or run the gates again.",
        )
    return evidence
