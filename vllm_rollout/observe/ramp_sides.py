"""Sides of a deployment in a ramp: the canary's replicas and the baseline's."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from vllm_rollout.model.deployment import Deployment, Replica, Revision, newest_served
from vllm_rollout.model.errors import RolloutError, UsageError
from vllm_rollout.model.live_figures import Figure, FigureName
from vllm_rollout.platform.reader import ReleaseReader
from vllm_rollout.policy import Policy


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """Some replicas of a release. `replicas` is None where the platform does not say.

    `alone` are those that only their names and addresses tell from `others`: both have the
    release's labels.
    """

    deployment: Deployment
    replicas: Sequence[Replica] | None
    revision: int | None = None
    name: str = ""
    others: Sequence[Replica] = ()
    alone: bool = False
    wanted: int = 0
    unknown: str = ""

    @property
    def needed(self) -> list[Replica]:
        """The replicas without which no sum is one."""
        return [replica for replica in self.replicas or () if replica.ready]


def sides_of(deployment: Deployment, policy: Policy, platform: ReleaseReader) -> list[Side]:
    """Return the sides of a ramp of the deployment, or its one; none where there is no release.

    Does not raise.
    """
    try:
        replicas = platform.replicas(deployment)
        canaries = _canaries(deployment, platform)
    except RolloutError as error:
        return [Side(deployment=deployment, replicas=None, unknown=words_of(error))]
    history = _history(deployment, platform)
    newest = newest_served(history)
    if not replicas and not history:
        return []
    whole = Side(
        deployment=deployment,
        replicas=replicas,
        revision=newest.number if newest else None,
        wanted=newest.capacity if newest else 0,
    )
    if canaries:
        beside = newest_served(_history(deployment.canary, platform))
        labels = policy.prometheus.labels.values()
        alone = not any("{release}" in (value or "") for value in labels)
        return [
            replace(whole, name="baseline", others=canaries, alone=alone),
            Side(
                deployment=deployment.canary,
                replicas=canaries,
                revision=beside.number if beside else None,
                name="canary",
                others=replicas,
                alone=alone,
                wanted=beside.capacity if beside else 0,
            ),
        ]
    if newest is None or newest.complete:
        return [whole]
    return _ramp_by_replicas(whole, newest, history) or [whole]


def _canaries(deployment: Deployment, platform: ReleaseReader) -> Sequence[Replica]:
    try:
        canary = deployment.canary
    except UsageError:  # a name that is too long has none
        return []
    return platform.replicas(canary)


def _history(deployment: Deployment, platform: ReleaseReader) -> Sequence[Revision]:
    try:
        return platform.history(deployment)
    except RolloutError:
        return []


def _ramp_by_replicas(whole: Side, newest: Revision, history: Sequence[Revision]) -> list[Side]:
    """The two sides of a release some of whose replicas run another build than the others."""
    replicas = whole.replicas or ()
    new = [replica for replica in replicas if replica.build == newest.build.digest]
    old = [replica for replica in replicas if replica not in new]
    if not new or not old:
        return []
    builds = {replica.build for replica in old}
    before = [r.number for r in history if r.number < newest.number and r.build.digest in builds]
    return [
        replace(
            whole,
            replicas=old,
            revision=max(before, default=None),
            name="baseline",
            others=new,
            alone=True,
            wanted=newest.capacity - newest.replicas,
        ),
        replace(whole, replicas=new, name="canary", others=old, alone=True, wanted=newest.replicas),
    ]


def figures_of_platform(side: Side, source: str, at: datetime) -> dict[FigureName, Figure]:
    """Readiness and restarts, as the platform has them."""
    if side.replicas is None:
        return dict.fromkeys(FigureName, Figure(unknown=side.unknown))
    serving = [replica for replica in side.replicas if not replica.follower]
    ready = sum(replica.ready for replica in serving)
    restarts = sum(replica.restarts for replica in side.replicas)
    whole = max(len(serving), side.wanted)
    return {
        FigureName.READY: Figure(value=float(ready), of=float(whole), source=source, at=at),
        FigureName.RESTARTS: Figure(value=float(restarts), source=source, at=at),
    }


def words_of(error: Exception) -> str:
    """The error, and what to do."""
    remedy = getattr(error, "remedy", "")
    return f"{error}. {remedy}" if remedy else str(error)
