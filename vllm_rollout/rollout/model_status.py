"""Status of a model: its build in each environment, the evidence for it, and what blocks it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cache, partial
from itertools import cycle

from vllm_rollout.model.deployment import (
    Build,
    Deployment,
    Replica,
    Revision,
    RevisionStatus,
    newest_served,
    short_digest,
)
from vllm_rollout.model.errors import RolloutError, UsageError
from vllm_rollout.model.units import of_total
from vllm_rollout.next_command import promote_command, release_command
from vllm_rollout.platform.base import without_router
from vllm_rollout.platform.reader import ReleaseReader, at_home, homes
from vllm_rollout.policy import Policy
from vllm_rollout.rollout.audit_log import AuditLogReader, Decision, DecisionKind, why_it_is_back
from vllm_rollout.rollout.evidence_store import PassedRevisionsReader
from vllm_rollout.rollout.journal import JournalEntry, last_entry
from vllm_rollout.rollout.lost_history import ensure_history
from vllm_rollout.rollout.model_registry import registered
from vllm_rollout.rollout.notifier import messages_missed
from vllm_rollout.rollout.promotion_blockers import reasons_to_wait
from vllm_rollout.rollout.sign_offs import rolled_back_before, sign_off_of
from vllm_rollout.rollout.soak_samples import soak_of

_Decisions = Mapping[str, Callable[[], Sequence[Decision]]]
"""By environment how to read, once, what was decided where it is changed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CanaryStatus:
    """A canary beside a release: `share` of the users' traffic goes to it, a fraction.

    `problem` is why the share is not known; it is 0 then.
    """

    share: float
    build: Build | None
    replicas: tuple[Replica, ...]
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvironmentStatus:
    """One environment. `revision` is None where nothing was ever deployed.

    `evidence` is the digest of the evidence by which this build passed its gates here, or None.
    `soaked_seconds` is how long the revision was seen healthy (where no soak is asked for, how old
    it is), `soak_left_seconds` how much longer it must be. `registered` is the model registry's
    answer, or why it cannot be queried; None without a command. `canary` is None where there is
    none, nor any traffic for one. `blocks` is why it cannot go on to the next environment now;
    empty if nothing is known to hold it but its gates, and for the last environment. `sign_off` is
    by whose it may go on, and what proves whose it is; empty for nobody's.
    """

    environment: str
    url: str
    revision: int | None = None
    revision_status: str = ""
    created: datetime | None = None
    build: Build | None = None
    on_build: int = 0
    capacity: int = 0
    replicas: tuple[Replica, ...] = ()
    evidence: str | None = None
    soaked_seconds: float = 0.0
    soak_left_seconds: float = 0.0
    registered: str | None = None
    canary: CanaryStatus | None = None
    blocks: tuple[str, ...] = ()
    sign_off: str = ""
    rolled_back: str = ""
    """Why it is where it is since its last rollback, and what to do next; else empty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelStatus:
    """All environments in order, the unfinished rollout, if any, and the messages that people have
    not got, by channel."""

    model: str
    environments: tuple[EnvironmentStatus, ...]
    under_way: JournalEntry | None
    undelivered: Mapping[str, Sequence[str]] = field(default_factory=dict)


def models_known(platform: ReleaseReader) -> list[str]:
    """Return the models that have a journal."""
    prefix = "rollout/"
    return [key.removeprefix(prefix) for key in platform.store.keys(prefix)]


def model_status(platform: ReleaseReader, policy: Policy, model: str, now: datetime) -> ModelStatus:
    """Return the status of `model`; `policy` is the model's own.

    Raises: as the platform.
    """
    stores = [each.store for each in homes(platform, policy.order[::-1])]
    entries = [entry for store in stores if (entry := last_entry(store, model))]
    under_way = next((entry for entry in entries if entry.unfinished), None)
    chains = [cache(partial(AuditLogReader(store).whole, model)) for store in stores]
    # One store is that of all environments; several are one for each.
    decisions = dict(zip(reversed(policy.order), cycle(chains), strict=False))
    found: list[EnvironmentStatus] = []
    after: EnvironmentStatus | None = None
    for environment in reversed(policy.order):
        deployment = policy.deployment(model, environment)
        # What blocks a promotion is kept where it goes to.
        where = at_home(platform, after.environment if after else environment)
        after = _environment(where, policy, deployment, after, under_way, decisions, now)
        found.append(after)
    return ModelStatus(
        model=model,
        environments=tuple(reversed(found)),
        under_way=under_way,
        undelivered=messages_missed(stores, model),
    )


def _environment(
    platform: ReleaseReader,
    policy: Policy,
    deployment: Deployment,
    after: EnvironmentStatus | None,
    under_way: JournalEntry | None,
    decisions: _Decisions,
    now: datetime,
) -> EnvironmentStatus:
    environment = deployment.environment
    try:
        url = platform.route(deployment).url
    except RolloutError as error:
        url = str(error)
    history = platform.history(deployment)
    if not history:
        missing: tuple[str, ...] = () if after is None else ("nothing is deployed here",)
        try:
            ensure_history(platform, deployment)
        except UsageError as error:
            missing = (f"{error}. {error.remedy}",)
        return EnvironmentStatus(environment=environment, url=url, blocks=missing)
    newest = newest_served(history) or history[-1]
    replicas = tuple(platform.replicas(deployment))
    soaked, left = _soak(platform, policy, deployment, newest, now)
    sign_off, blocks = "", list[str]()
    if after is not None:
        sign_off, on_the_way = _on_the_way(
            platform, policy, deployment, newest, after, decisions, now
        )
        blocks = [*_blocks_here(newest, replicas, under_way, deployment), *on_the_way]
    return EnvironmentStatus(
        environment=environment,
        url=url,
        revision=newest.number,
        revision_status=newest.status.value,
        created=newest.created,
        build=newest.build,
        on_build=newest.replicas,
        capacity=newest.capacity,
        replicas=replicas,
        evidence=_evidence(platform, deployment, history, newest.build),
        soaked_seconds=soaked.total_seconds(),
        soak_left_seconds=left.total_seconds(),
        registered=_registered(platform, policy, deployment, newest),
        canary=_canary(platform, deployment)
        if policy.ramps_by_traffic(environment) or _moves_traffic(under_way, environment)
        else None,
        blocks=(*_not_the_newest(newest, history[-1]), *without_router(replicas), *blocks),
        sign_off=sign_off,
        rolled_back=_rolled_back(decisions, deployment, newest),
    )


def _rolled_back(decisions: _Decisions, deployment: Deployment, serving: Revision) -> str:
    try:
        last = why_it_is_back(decisions[deployment.environment](), deployment.environment)
    except RolloutError:
        return ""  # what depends on the log names what is wrong with it
    if last is None:
        return ""
    build, when = short_digest(last.build), f"{last.at:%Y-%m-%d %H:%M:%S %Z}"
    if last.kind is DecisionKind.ROLLBACK_FAILED:
        return (
            f"the rollback at {when} did not restore it, a person is needed: {last.why}. Next: "
            + release_command("diagnose", deployment)
        )
    again = promote_command(deployment.model, deployment.environment, "--again", "--reason", "TEXT")
    return (
        f"revision {serving.number} (build {serving.build.short}) serves, since build {build} was "
        f"rolled back at {when}: {last.why}. Next: deploy another build, or ask for that one "
        f"again: {again}"
    )


def _moves_traffic(under_way: JournalEntry | None, environment: str) -> bool:
    """Return whether the unfinished rollout moves traffic, whatever the policy says now."""
    return under_way is not None and under_way.target == environment and under_way.moves_traffic


def _canary(platform: ReleaseReader, deployment: Deployment) -> CanaryStatus | None:
    share, problem = 0.0, ""
    try:
        share = platform.weights(deployment).canary_share
    except RolloutError as error:
        problem = str(error)
    history = platform.history(deployment.canary)
    if not (share or problem or history):
        return None
    return CanaryStatus(
        share=share,
        build=history[-1].build if history else None,
        replicas=tuple(platform.replicas(deployment.canary)),
        problem=problem,
    )


def _registered(
    platform: ReleaseReader, policy: Policy, deployment: Deployment, newest: Revision
) -> str | None:
    try:
        return registered(policy, platform, deployment, newest)
    except RolloutError as error:
        return f"unknown: {error}"


def _evidence(
    platform: ReleaseReader,
    deployment: Deployment,
    history: Sequence[Revision],
    build: Build,
) -> str | None:
    """Return the newest evidence of `build`, which several revisions may have run."""
    ledger = PassedRevisionsReader(platform.store)
    of_the_build = (r for r in reversed(history) if r.build == build)
    return next(filter(None, (ledger.evidence_of(deployment, r) for r in of_the_build)), None)


def _soak(
    platform: ReleaseReader, policy: Policy, deployment: Deployment, newest: Revision, now: datetime
) -> tuple[timedelta, timedelta]:
    """Return the time soaked and the time left; all is left where the soak is unknown."""
    try:
        state = soak_of(platform, policy, deployment, newest, now)
    except RolloutError:
        rules = policy.environments[deployment.environment].soak
        return timedelta(), rules.minimum if rules else timedelta()
    if state is None:
        return max(timedelta(), now - newest.created), timedelta()
    return state.soaked, state.left


def _not_the_newest(serving: Revision, newest: Revision) -> Iterator[str]:
    if newest.number != serving.number:
        state = "not what the pods run"
        if newest.status is not RevisionStatus.SUPERSEDED:
            state = f"{newest.status}, {newest.replicas} of {newest.capacity}"
        yield f"revision {newest.number} is {state}: revision {serving.number} serves"


def _blocks_here(
    newest: Revision,
    replicas: tuple[Replica, ...],
    under_way: JournalEntry | None,
    deployment: Deployment,
) -> Iterator[str]:
    if under_way is not None and deployment.environment in (under_way.source, under_way.target):
        again = promote_command(under_way.model, under_way.target)
        if under_way.unverified:
            yield f"{under_way.target} was rolled back, not verified: {again} verifies it"
        else:
            yield (
                f"run {under_way.run_id} is under way or was left in its phase "
                f"{under_way.phase}: {again} finishes or undoes it"
            )
    if newest.status is not RevisionStatus.DEPLOYED or not newest.complete:
        yield f"revision {newest.number} is {newest.status}, {newest.replicas} of {newest.capacity}"
    ready = sum(replica.ready for replica in replicas)
    if ready < newest.capacity:
        why = release_command("diagnose", deployment)
        yield f"{of_total(ready, newest.capacity, 'replica')} ready: {why} shows why"


def _on_the_way(
    platform: ReleaseReader,
    policy: Policy,
    source: Deployment,
    newest: Revision,
    after: EnvironmentStatus,
    decisions: _Decisions,
    now: datetime,
) -> tuple[str, list[str]]:
    """Return by whose sign-off a build goes on, and what blocks it."""
    if after.build == newest.build and after.on_build == after.capacity:
        last = last_entry(platform.store, source.model)
        if kept := last and last.keeps(newest.build, after.environment):
            again = promote_command(source.model, after.environment)
            not_passed = (
                f"and has not passed its gates there: {kept.unseen}. {again} asks them again"
            )
            return "", [f"{after.environment} runs this build already, {not_passed}"]
        return "", [f"{after.environment} runs this build already"]
    signed, blocks = "", list[str]()
    target = policy.deployment(source.model, after.environment)
    try:
        decided = decisions[after.environment]()
        if rolled_back := rolled_back_before(decided, target, newest.build):
            blocks.append(rolled_back)
        blocks += reasons_to_wait(platform, policy, source, target, newest, now)
        by, lacks = sign_off_of(platform.store, decided, policy, source, newest, now)
        signed = str(by or "")
        blocks += [lacks] if lacks else []
    except RolloutError as error:
        blocks.append(f"what it waits for is not known: {error}")
    return signed, blocks
