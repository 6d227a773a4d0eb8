"""Sign-off: a named person's approval, or rejection, of one evidence digest.

Each is an entry of the model's audit log, and counts only while that is whole.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from vllm_rollout.judge import Outcome
from vllm_rollout.model.deployment import Build, Deployment, Revision
from vllm_rollout.model.errors import UsageError
from vllm_rollout.model.evidence import Evidence, GateRun
from vllm_rollout.model.units import format_duration
from vllm_rollout.next_command import promote_command, sign_off_command
from vllm_rollout.platform.reader import StoreReader
from vllm_rollout.platform.writer import Store
from vllm_rollout.policy import Policy
from vllm_rollout.rollout.audit_log import (
    ABOUT_EVIDENCE,
    AuditLog,
    Decision,
    DecisionKind,
    name_and_account,
    promotion_since,
    standing_rollback,
    who_of,
)
from vllm_rollout.rollout.evidence_store import stored_evidence, unsigned
from vllm_rollout.rollout.identity import Proof, proofs


@dataclass(frozen=True, slots=True, kw_only=True)
class SignOff:
    """A person's decision about the evidence of that digest. `user` is the account it came from.

    `environment`, `revision` and `build` are those that the evidence is about. Of a sign-off that
    was read, `run` is the gate run in it, and `void` why it can no longer be gone by: it cannot be
    read, its run did not end well, a promotion has begun on it already, or nothing proves whose it
    is. `how` is what proves that, and `signature` the signature or token itself.
    """

    evidence: str
    approved: bool
    by: str
    user: str
    at: datetime
    note: str
    environment: str
    revision: int
    build: str
    run: GateRun | None = field(default=None, repr=False)
    void: str = ""
    how: str = "name alone"
    signature: str = field(default="", repr=False)

    def __str__(self) -> str:
        what = "signed off" if self.approved else "rejected"
        note = f": {self.note}" if self.note else ""
        how = f" ({self.how})" if self.how else ""
        return f"{what} by {self.by}{how}, {self.at:%Y-%m-%d %H:%M %Z}{note}"

    def as_decision(self, model: str, number: int = 0) -> Decision:
        """The decision of the audit log that it is, or will be."""
        return Decision(
            number=number,
            kind=DecisionKind.SIGN_OFF if self.approved else DecisionKind.REJECTION,
            model=model,
            environment=self.environment,
            at=self.at,
            who=who_of(self.by, self.user),
            why=self.note,
            build=self.build,
            evidence=self.evidence,
            signature=self.signature,
            previous="",
        )


_SIGNED_IMAGES = "signed-images"
"""The chart rollout-roles has this key too (`admission.signed`)."""
_MOST_IMAGES = 1000


class SignOffsReader:
    """Reads the sign-offs of one model from its audit log."""

    def __init__(self, store: StoreReader, model: str) -> None:
        self._store, self._model = store, model

    def about(
        self, environment: str, revision: Revision, decisions: Sequence[Decision], policy: Policy
    ) -> list[SignOff]:
        """Return each evidence's latest sign-off for this revision and build, newest first.

        `decisions` are the model's (`AuditLogReader.whole`). A sign-off that nothing proves takes
        no other's place. A rejection does: who stops need not be proved.

        Raises:
            UnreachableError: the keys by which a token is proved cannot be had.
        """
        here = [
            each
            for each in decisions
            if each.kind in ABOUT_EVIDENCE
            and (each.environment, each.build) == (environment, revision.build.digest)
        ]
        proved, last = proofs(here, policy), dict[str, Decision]()
        for each in here:
            if proved[each.number].problem and each.kind is DecisionKind.SIGN_OFF:
                last.setdefault(each.evidence, each)
            else:
                last.pop(each.evidence, None)
                last[each.evidence] = each
        found = (
            self._sign_off(each, proved[each.number], revision, decisions, policy)
            for each in reversed(last.values())
        )
        return [each for each in found if each is not None]

    def _sign_off(
        self,
        decision: Decision,
        proof: Proof,
        revision: Revision,
        decisions: Sequence[Decision],
        policy: Policy,
    ) -> SignOff | None:
        """The sign-off in a decision; None where its evidence is not about `revision`."""
        run = None
        try:
            evidence = stored_evidence(self._store, self._model, decision.evidence)
        except UsageError as error:
            void = str(error)
        else:
            run = last_gate_run(evidence, decision.environment)
            if run is None or not run.is_about(revision):
                return None
            void = (
                unsigned(self._store, policy.evidence, self._model, decision.evidence)
                or evidence.unsignable
                or used(run, decisions)
            )
        if proof.problem:
            void = f"{decision} is not proved: {proof.problem}"
        by, user = name_and_account(decision.who)
        return SignOff(
            evidence=decision.evidence,
            approved=decision.kind is DecisionKind.SIGN_OFF,
            by=by,
            user=user,
            at=decision.at,
            note=decision.why,
            environment=decision.environment,
            revision=revision.number,
            build=decision.build,
            run=run,
            void=void,
            how=proof.how or "not proved",
            signature=decision.signature,
        )

    def asked(self, source: Deployment) -> str:
        """Return the digest of the evidence that last waited for a sign-off, or empty."""
        entry = self._store.read(self._asked(source))
        return str(entry.value["evidence"]) if entry else ""

    @staticmethod
    def _asked(source: Deployment) -> str:
        return f"sign-off-asked/{source.release}"


class SignOffs(SignOffsReader):
    """Sign-offs of one model."""

    _store: Store

    def __init__(self, store: Store, model: str) -> None:
        super().__init__(store, model)

    def add(self, sign_off: SignOff, run_id: str) -> None:
        """Append a sign-off to the audit log. The image of an approved `run` is noted first.

        Raises: as the store.
        """
        word = sign_off.as_decision(self._model)
        image = sign_off.run.build.image_digest if sign_off.run and sign_off.run.build else None
        if sign_off.approved and image:
            self._note_image(image)
        AuditLog(self._store).append(
            word.kind,
            model=word.model,
            environment=word.environment,
            at=word.at,
            who=word.who,
            why=word.why,
            run_id=run_id,
            build=word.build,
            evidence=word.evidence,
            signature=word.signature,
        )

    def _note_image(self, image: str) -> None:
        """Note the digest among those signed off, by which a cluster's admission can go."""
        known = self._store.read(_SIGNED_IMAGES)
        images = [each for each in (known.value if known else ()) if each != image]
        self._store.write(
            _SIGNED_IMAGES,
            [*images, image][-_MOST_IMAGES:],
            expect=known.version if known else None,
        )

    def ask(self, source: Deployment, digest: str) -> None:
        """Note that this evidence waits for a sign-off."""
        key = self._asked(source)
        known = self._store.read(key)
        self._store.write(key, {"evidence": digest}, expect=known.version if known else None)


def last_gate_run(evidence: Evidence, environment: str) -> GateRun | None:
    """Return the last run in `evidence` of the gates of `environment`'s deployment."""
    runs = [run for run in evidence.runs if run.deployment.environment == environment]
    return next((run for run in reversed(runs) if run.revision is not None), None)


def unusable(
    run: GateRun | None, policy: Policy, environment: str, revision: Revision, now: datetime
) -> str:
    """Return why a promotion of `revision` may not rest on `run`; "" if it may."""
    return next(_reasons(run, policy, environment, revision, now), "")


def _reasons(
    run: GateRun | None, policy: Policy, environment: str, revision: Revision, now: datetime
) -> Iterator[str]:
    if run is None:
        yield f"it holds no gates of {environment}"
        return
    if run.outcome is not Outcome.PASS:
        yield f"its {environment} gates did not pass ({run.outcome})"
    if not run.is_about(revision):
        yield (
            f"it is about revision {run.revision} of {environment}, build "
            f"{run.build.short if run.build else 'unknown'}; revision {revision.number}, build "
            f"{revision.build.short}, made {revision.created:%Y-%m-%d %H:%M:%S %Z}, is there now"
        )
    if run.policy_digest != policy.digest:
        yield "the policy has changed since"
    valid = validity(policy, environment)
    if not timedelta() <= now - run.finished <= valid:
        yield (
            f"it is stale: its gates ended {run.finished:%Y-%m-%d %H:%M:%S %Z}, and evidence is "
            f"good for {format_duration(valid)}"
        )


def used(run: GateRun, decisions: Iterable[Decision]) -> str:
    """Return which promotion has rested on `run`; "" if none: one sign-off promotes once."""
    since = promotion_since(decisions, run)
    return f"a promotion to {since.environment} has rested on it before: {since}" if since else ""


def rolled_back_before(decisions: Iterable[Decision], target: Deployment, build: Build) -> str:
    """Return that `build` was rolled back from `target`, and what to do; "" if it was not."""
    decided = standing_rollback(decisions, target.environment, build.digest)
    if decided is None:
        return ""
    again = promote_command(target.model, target.environment, "--again", "--reason", "TEXT")
    return (
        f"build {build.short} was rolled back from {target.environment} at "
        f"{decided.at:%Y-%m-%d %H:%M:%S %Z} by {decided.who}: {decided.why}. Deploy another build, "
        f"or ask for this one again: {again}"
    )


def validity(policy: Policy, environment: str) -> timedelta:
    """Return how old the evidence of a promotion from `environment` may be."""
    rules = policy.environments[environment]
    limits = [rules.sign_off.valid] if rules.sign_off else []
    limits += [rules.soak.maximum] if rules.soak else []
    return min(limits, default=timedelta())


def environment_after(policy: Policy, environment: str) -> str:
    """Return the environment that a sign-off in `environment` opens; the last opens none but it."""
    following = policy.order.index(environment) + 1
    return policy.order[min(following, len(policy.order) - 1)]


def how_to_sign(policy: Policy, source: Deployment, digest: str) -> str:
    """Return the command by which a person signs evidence of `source` off."""
    words = policy.sign_off_words(source.environment)
    return sign_off_command(source.model, digest, *words)


def sign_off_of(
    store: StoreReader,
    decisions: Sequence[Decision],
    policy: Policy,
    source: Deployment,
    revision: Revision,
    now: datetime,
) -> tuple[SignOff | None, str]:
    """Return by which sign-off `revision` may leave `source`, and what it lacks with what to do.

    Where none is asked for, both are empty. `decisions` are the model's (`AuditLogReader.whole`).
    """
    if policy.environments[source.environment].sign_off is None:
        return None, ""
    known = SignOffsReader(store, source.model)
    decided = known.about(source.environment, revision, decisions, policy)
    for each in decided:
        if not each.approved:
            return None, f"revision {revision.number} was {each} (evidence {each.evidence})"
    reasons = [
        each.void or unusable(each.run, policy, source.environment, revision, now)
        for each in decided
    ]
    if "" in reasons:
        return decided[reasons.index("")], ""
    of_no_use = f" (it was {decided[0]}, which does not count: {reasons[0]})" if decided else ""
    if asked := known.asked(source):
        run = last_gate_run(stored_evidence(store, source.model, asked), source.environment)
        void = run is not None and (
            unsigned(store, policy.evidence, source.model, asked) or used(run, decisions)
        )
        if not void and not unusable(run, policy, source.environment, revision, now):
            command = how_to_sign(policy, source, asked)
            return None, f"its evidence waits for sign-off{of_no_use}: {command}"
    following = environment_after(policy, source.environment)
    return None, (
        f"no fresh evidence of it is signed off{of_no_use}; evidence to sign is made by: "
        + promote_command(source.model, following)
    )
