"""Audit log: the decisions about a model as a hash chain.

Each entry holds the decision, the person, time, reason and evidence, and the digest of the entry
before. An entry that was changed, removed or moved afterwards breaks the chain, and
`AuditLog.verify` names it. A promotion that is complete rests on evidence that has grown from that
by which it began.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from pydantic import TypeAdapter

from vllm_rollout.model.deployment import canonical_digest
from vllm_rollout.model.errors import ExitCode, RolloutError, UsageError
from vllm_rollout.model.evidence import GateRun, Kept, LaterSchemaError
from vllm_rollout.model.text import printable
from vllm_rollout.model.units import counted
from vllm_rollout.next_command import next_command
from vllm_rollout.platform.base import ConflictError, Entry
from vllm_rollout.platform.reader import StoreReader
from vllm_rollout.platform.writer import Store
from vllm_rollout.rollout.evidence_store import grown_from

_TRIES = 10
_LATER = (
    "entry {number} is of a kind that this version does not know: update vllm-rollout to the "
    "version that wrote it, or a later one"
)


class DecisionKind(StrEnum):
    """Kinds of decisions, and of their ends."""

    PROMOTION = "promotion"
    """A build that passed its gates is promoted from here on."""
    PROMOTED = "promoted"
    """The promotion is complete, watched to its end."""
    KEPT = "kept"
    """It is complete and stays, though a gate could not know: a person is needed."""
    SETTLED = "settled"
    """What was kept has passed its gates since."""
    REFUSAL = "refusal"
    """Nothing is promoted."""
    ROLLBACK = "rollback"
    """The target is returned to the state before from here on."""
    ROLLED_BACK = "rolled-back"
    """The state before is back and serves."""
    ROLLBACK_FAILED = "rollback-failed"
    """A person is needed."""
    LEFT = "left"
    """A run ended with the rollout unfinished: the next one finishes or undoes it."""
    SIGN_OFF = "sign-off"
    """A named person approved an evidence digest."""
    REJECTION = "rejection"
    """A named person refused one."""
    OVERRIDE = "override"
    """A named person waived preconditions of a promotion."""


ABOUT_EVIDENCE = (DecisionKind.SIGN_OFF, DecisionKind.REJECTION)
"""What a named person decides about an evidence digest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision(Kept):
    """One entry. `evidence` is the digest it rests on or "", `build` the build's, `why` the reason.

    `number` counts from 1, without gaps, for each model. `previous` is the digest of the entry
    before, "" in the first.
    """

    number: int
    kind: DecisionKind
    model: str
    environment: str
    at: datetime
    who: str
    why: str
    run_id: str = ""
    build: str = ""
    evidence: str = ""
    previous: str
    unfinished: bool = False
    """Of a rollback: it undoes what a run left unfinished, which says nothing against the build."""
    signature: str = ""
    """Of a sign-off or rejection: the signature or token that proves whose word it is."""

    @property
    def digest(self) -> str:
        """`sha256:<hex>` of the content, which includes the digest of the entry before.

        Of an entry that was read it is that of the document, as another version may have written
        it.
        """
        return getattr(self, "kept_as", "") or canonical_digest(_content(self))

    def __str__(self) -> str:
        return f"entry {self.number} ({self.kind} by {self.who}, {self.at:%Y-%m-%d %H:%M:%S %Z})"


_AS = " (as "


def who_of(name: str, account: str) -> str:
    """Return `who` of a decision: a name, and the account, key or subject that it came from."""
    return f"{name}{_AS}{account})"


def name_and_account(who: str) -> tuple[str, str]:
    """Return the two that `who_of` has joined."""
    name, _, account = who.rpartition(_AS)
    return name, account.removesuffix(")")


_ADAPTER: TypeAdapter[Decision] = TypeAdapter(Decision)


class BrokenChainError(RolloutError):
    """A model's decisions do not follow one another: somebody has changed them."""

    exit_code = ExitCode.INCONCLUSIVE


class AuditLogReader:
    """Reads and verifies the hash chains of all models."""

    def __init__(self, store: StoreReader) -> None:
        self._store = store

    def of(self, model: str) -> list[Decision]:
        """Return all readable decisions about `model`, oldest first."""
        return _readable(self._entries(model))

    def whole(self, model: str) -> list[Decision]:
        """Return all decisions about `model`, oldest first: the only way to go by one.

        Raises:
            BrokenChainError: an entry is gone, was changed or replaced; the message names it.
        """
        entries = self._entries(model)
        if wrong := next(self._wrong(model, entries, evidence=False), ""):
            raise BrokenChainError(
                f"the audit log of {model} is not whole, and no decision in it counts: {wrong}",
                remedy=f"{next_command('vllm-rollout', 'history', model)} names each broken entry. "
                "Restore them from a backup.",
            )
        return _readable(entries)

    def verify(self, model: str) -> list[str]:
        """Return the errors of the chain, a line for each entry; empty when it is intact."""
        return list(self._wrong(model, self._entries(model), evidence=True))

    def _entries(self, model: str) -> list[tuple[Decision | None, str]]:
        """Read each entry, oldest first, with its own error if it has one."""
        return [self._read(model, number) for number in range(1, self._length(model) + 1)]

    def _wrong(
        self, model: str, entries: Sequence[tuple[Decision | None, str]], *, evidence: bool
    ) -> Iterator[str]:
        last, last_digest = 0, ""
        try:
            last, last_digest = _last(self._head(model))
        except BrokenChainError as error:
            yield str(error)
        if len(entries) > last + 1:
            yield (
                f"{counted(len(entries) - last, 'more decision')} after entry {last}, which is "
                "noted as the last: the note is gone or was put back"
            )
        before: Decision | None = None
        begun: dict[str, str] = {}
        for number, (decision, problem) in enumerate(entries, start=1):
            if decision is None or decision.number != number:
                yield problem or (
                    f"entry {number} is gone: in its place is what was written as entry "
                    f"{decision.number if decision else '?'}"
                )
                before = None
                continue
            if problem:
                yield problem
            elif before is not None and decision.previous != before.digest:
                yield (
                    f"{before} is not the one that {decision} was written after: one of the two "
                    "was replaced"
                )
            elif number == 1 and decision.previous:
                yield f"{decision} was written after another, which is gone"
            if decision.kind is DecisionKind.PROMOTION:
                begun[decision.environment] = decision.evidence
            if evidence and decision.evidence:
                yield from self._wrong_evidence(decision, begun.get(decision.environment, ""))
            # Of a changed entry the digest it had is known from itself at best: do not go by it.
            before = None if problem else decision
            if decision.number == last and not problem and decision.digest != last_digest:
                yield f"{decision} is not the one that was written last: it was replaced"

    def _wrong_evidence(self, decision: Decision, begun: str) -> Iterator[str]:
        """Yield what is wrong with the decision's evidence, or with what it has grown from.

        `begun` is the evidence by which the promotion to the same environment began last.
        """
        grown: list[str] = []
        try:
            for evidence in grown_from(self._store, decision.model, decision.evidence):
                grown.append(evidence.digest)
                if evidence.schema == 1:
                    return  # from before evidence named what it has grown from
        except UsageError as error:
            if isinstance(error, LaterSchemaError) and error.intact:
                return  # what it holds is for a later version to read
            yield f"the evidence {decision.evidence} of {decision}: {error}"
            return
        if decision.kind is DecisionKind.PROMOTED and begun and begun not in grown:
            yield (
                f"the evidence {decision.evidence} of {decision} has not grown from {begun}, by "
                "which the promotion began"
            )

    def _read(self, model: str, number: int) -> tuple[Decision | None, str]:
        """Return the entry at a place, and its own error if it has one."""
        entry = self._store.read(_key(model, number))
        if entry is None:
            return None, f"entry {number} is gone"
        claimed = digest = ""
        try:
            content, claimed = entry.value["decision"], entry.value["digest"]
            digest = canonical_digest(content)
            decision = _ADAPTER.validate_python(content)
        except (ValueError, KeyError, TypeError, RecursionError):
            later = digest and digest == claimed
            changed = f"entry {number} was changed: it is no longer a decision"
            return None, _LATER.format(number=number) if later else changed
        object.__setattr__(decision, "kept_as", digest)
        if decision.model != model:
            moved = f"{decision} is about {decision.model}, and not about {model}: it was put here"
            return decision, moved
        if digest == claimed:
            return decision, ""
        named = decision if decision.number == number else f"entry {number}"
        return decision, f"{named} was changed after it was written"

    def _length(self, model: str) -> int:
        """Return the number of entries. One may not be noted as the last yet; more may be there
        where the note was put back."""
        number = 0
        with suppress(BrokenChainError):
            number, _ = _last(self._head(model))
        while self._store.read(_key(model, number + 1)) is not None:
            number += 1
        return number

    def _head(self, model: str) -> Entry | None:
        return self._store.read(f"decided/{model}")


class AuditLog(AuditLogReader):
    """Hash chains of all models, in a platform's store."""

    _store: Store

    def __init__(self, store: Store) -> None:
        super().__init__(store)

    def append(
        self,
        kind: DecisionKind,
        *,
        model: str,
        environment: str,
        at: datetime,
        who: str,
        why: str,
        run_id: str = "",
        build: str = "",
        evidence: str = "",
        unfinished: bool = False,
        signature: str = "",
    ) -> Decision:
        """Append an entry; entries of several writers at once follow one another.

        Raises:
            ConflictError: the place after the last entry is taken by one that does not follow it.
            BrokenChainError: which entry is the last is not known.
        """
        for _ in range(_TRIES):
            head = self._head(model)
            number, previous = _last(head)
            decision = Decision(
                number=number + 1,
                kind=kind,
                model=model,
                environment=environment,
                at=at,
                who=who,
                why=why,
                run_id=run_id,
                build=build,
                evidence=evidence,
                previous=previous,
                unfinished=unfinished,
                signature=signature,
            )
            try:
                self._store.write(_key(model, number + 1), _document(decision), expect=None)
            except ConflictError:
                # Another was first, or was killed before it could say that its entry is the last.
                self._catch_up(model, head, number + 1)
                continue
            self._set_head(model, head, decision)
            return decision
        raise ConflictError(
            f"the decisions about {model} cannot be added to: entry {number + 1} does not follow "
            f"entry {number}",
            remedy=f"{next_command('vllm-rollout', 'history', model)} names the broken entries.",
        )

    def _set_head(self, model: str, head: Entry | None, last: Decision) -> None:
        value = {"number": last.number, "digest": last.digest}
        try:
            self._store.write(f"decided/{model}", value, expect=head.version if head else None)
        except ConflictError:
            return  # another has gone on from this entry already

    def _catch_up(self, model: str, head: Entry | None, number: int) -> None:
        decision, problem = self._read(model, number)
        if decision is not None and not problem and decision.previous == _last(head)[1]:
            self._set_head(model, head, decision)


_BACK = (DecisionKind.ROLLBACK, DecisionKind.ROLLED_BACK)
_PROMOTES = (DecisionKind.PROMOTION, DecisionKind.PROMOTED)


def standing_rollback(
    decisions: Iterable[Decision], environment: str, build: str
) -> Decision | None:
    """Return by which decision `build` was rolled back from `environment`, unless it was promoted
    there again since; None if it was not, or only as its run was left unfinished."""
    last = None
    undoing: set[str] = set()
    for each in decisions:
        if (each.environment, each.build) == (environment, build):
            if each.unfinished:
                undoing.add(each.run_id)
            elif each.kind is DecisionKind.PROMOTION:
                last = None
            elif each.kind in _BACK and each.run_id not in undoing:
                last = each
    return last


def why_it_is_back(decisions: Iterable[Decision], environment: str) -> Decision | None:
    """Return the decision by which a rollback ended in `environment`, or did not restore it; None
    where something was promoted there since, or nothing was rolled back."""
    last = None
    for each in decisions:
        if each.environment == environment:
            if each.kind in _PROMOTES:
                last = None
            elif each.kind in (*_BACK, DecisionKind.ROLLBACK_FAILED):
                last = each
    return last


def promotion_since(decisions: Iterable[Decision], run: GateRun) -> Decision | None:
    """Return which promotion has begun on `run`, or after it, from its environment: it is used
    up by that, for good. None if none has."""
    if run.build is None:
        return None
    return next(
        (
            each
            for each in decisions
            if each.kind is DecisionKind.PROMOTION
            and each.build == run.build.digest
            and each.environment != run.deployment.environment
            and each.at >= run.finished
        ),
        None,
    )


def _readable(entries: Iterable[tuple[Decision | None, str]]) -> list[Decision]:
    return [decision for decision, _ in entries if decision is not None]


def _key(model: str, number: int) -> str:
    return f"decisions/{model}/{number:08d}"


def _last(head: Entry | None) -> tuple[int, str]:
    """Return the number and digest of the last entry, as it is noted; 0 where it is not.

    Raises:
        BrokenChainError: the note is not one.
    """
    if head is None:
        return 0, ""
    try:
        number, digest = head.value["number"], head.value["digest"]
        if type(number) is int and number > 0:
            return number, str(digest)
    except (KeyError, TypeError):
        pass
    raise BrokenChainError(
        f"{head.key}, which notes the last entry, was changed", remedy="Restore it from a backup."
    )


def _content(decision: Decision) -> dict[str, Any]:
    content: dict[str, Any] = _ADAPTER.dump_python(decision, mode="json")
    for name in ("who", "why"):
        content[name] = printable(content[name])
    for name in ("unfinished", "signature"):
        if not content[name]:
            del content[name]  # so that earlier versions can read all other decisions
    return content


def _document(decision: Decision) -> dict[str, Any]:
    return {"decision": _content(decision), "digest": decision.digest}
