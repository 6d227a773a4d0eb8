"""Observed soak: by Prometheus, by samples in the platform's store, or by age alone.

A sample is one observation of a deployment: are all replicas ready, does `/health` answer, does a
token come. Equal samples in a row are one stretch, so that days of them stay small.
"""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Self

from pydantic import TypeAdapter

from vllm_rollout.judge import Verdict
from vllm_rollout.judge.soak import SoakState, Stretch, soak_state, soak_verdict
from vllm_rollout.model.deployment import Deployment, Replica, Revision
from vllm_rollout.model.errors import UsageError
from vllm_rollout.model.observation import ProbeSample
from vllm_rollout.model.request_counts import Uptime
from vllm_rollout.model.text import all_printable
from vllm_rollout.model.units import of_total
from vllm_rollout.next_command import release_command
from vllm_rollout.observe.deployment_metrics import DeploymentMetrics
from vllm_rollout.platform.base import ConflictError
from vllm_rollout.platform.reader import ReleaseReader
from vllm_rollout.platform.writer import Store
from vllm_rollout.policy import Policy, Soak

_MOST_STRETCHES = 200
"""Older stretches are dropped: after so many health changes the soak has restarted."""
_TRIES = 5
_EVERY = timedelta(minutes=1)
"""While nothing changes, more frequent observations are not kept."""
_STRETCHES: TypeAdapter[list[Stretch]] = TypeAdapter(list[Stretch])


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One observation. `restarts` are the restarts of each replica, by its name."""

    at: datetime
    healthy: bool
    why: str
    restarts: dict[str, int]


def sample_of(
    at: datetime, replicas: Sequence[Replica], capacity: int, probes: ProbeSample
) -> Sample:
    """Return one observation as a sample."""
    ready = sum(replica.ready for replica in replicas)
    wrong = []
    if ready < capacity:
        wrong.append(f"{of_total(ready, capacity, 'replica')} ready")
    if not probes.healthy:
        wrong.append("the health check failed")
    if probes.failures:
        wrong.append(f"no token came: {probes.error}")
    return Sample(
        at=at,
        healthy=not wrong,
        why=", ".join(wrong),
        restarts={replica.name: replica.restarts for replica in replicas},
    )


def keep_sample(
    store: Store, deployment: Deployment, revision: Revision, sample: Sample, rules: Soak
) -> None:
    """Add a sample of `revision`; one that is older than the last is dropped.

    Raises:
        ConflictError: others wrote at every try.
    """
    key = _key(deployment, revision)
    for attempt in range(_TRIES):
        known = store.read(key)
        same = known is not None and known.value["build"] == revision.build.digest
        before = known.value if known is not None and same else {"restarts": {}, "stretches": []}
        stretches = _STRETCHES.validate_python(before["stretches"])
        if stretches and sample.at < stretches[-1].last:
            return
        value = {
            "build": revision.build.digest,
            "restarts": sample.restarts,
            "stretches": all_printable(
                _STRETCHES.dump_python(
                    _added(stretches, before["restarts"], sample, rules), mode="json"
                )
            ),
        }
        try:
            store.write(key, value, expect=known.version if known else None)
        except ConflictError:
            if attempt == _TRIES - 1:
                raise
        else:
            return


@dataclass(slots=True)
class Sampling:
    """Keeps observations that are made anyway as samples of one revision, no more than needed."""

    store: Store
    deployment: Deployment
    revision: Revision
    rules: Soak
    _last: Sample | None = None

    @classmethod
    def of(
        cls, store: Store, policy: Policy, deployment: Deployment, revision: Revision
    ) -> Self | None:
        """Return None where the environment has no soak, or its soak does not go by samples."""
        rules = policy.environments[deployment.environment].soak
        if rules is None or observed_by(policy, rules) != "samples":
            return None
        return cls(store, deployment, revision, rules)

    def see(self, at: datetime, replicas: Sequence[Replica] | None, probes: ProbeSample) -> None:
        """Keep an observation, unless its replicas are unknown, its path had errors, or `/health`
        refused the key.

        Raises:
            RolloutError: it could not be kept.
        """
        if replicas is None or probes.path_errors or not probes.total or probes.health_refused:
            return
        # An autoscaler has changed the number since; each replica that there is has to be ready.
        scaled = max(1, len(replicas)) if self.revision.autoscaled else None
        sample = sample_of(at, replicas, scaled or self.revision.capacity, probes)
        last = self._last
        if (
            last is not None
            and replace(sample, at=last.at) == last
            and at - last.at < min(_EVERY, self.rules.max_gap / 2)
        ):
            return
        keep_sample(self.store, self.deployment, self.revision, sample, self.rules)
        self._last = sample


def soak_of(
    platform: ReleaseReader,
    policy: Policy,
    deployment: Deployment,
    revision: Revision,
    now: datetime,
) -> SoakState | None:
    """Return the state of the soak of `revision`; None where the environment asks for none.

    Raises:
        UnreachableError: Prometheus, or the store, did not answer.
    """
    rules = policy.environments[deployment.environment].soak
    if rules is None:
        return None
    stretches = _observed(platform, policy, deployment, revision, now, rules)
    return soak_state(stretches, began=revision.created, now=now, rules=rules)


def judge_soak(
    platform: ReleaseReader,
    policy: Policy,
    deployment: Deployment,
    revision: Revision,
    now: datetime,
) -> Verdict:
    """Return the verdict on the soak of `revision`.

    Raises:
        UsageError: the environment asks for none.
        UnreachableError: as `soak_of`.
    """
    state = soak_of(platform, policy, deployment, revision, now)
    if state is None:
        raise UsageError(f"{deployment.environment} has no soak in the policy")
    return soak_verdict(state, remedy=soak_remedy(policy, deployment))


def soak_remedy(policy: Policy, deployment: Deployment) -> str:
    """Return the remedy by which a soak is observed to its end."""
    rules = policy.environments[deployment.environment].soak
    how = None if rules is None else observed_by(policy, rules)
    if how == "samples":
        command = release_command("soak", deployment)
        return (
            f"Keep `{command}` running (or `watch`), or run it with --once by a schedule, every "
            "few minutes; or name a Prometheus (`prometheus.url`)."
        )
    return "Wait; a new revision begins a new soak."


def observed_by(policy: Policy, rules: Soak) -> str:
    """Return prometheus, samples or age; resolves `auto`."""
    if rules.observed_by != "auto":
        return rules.observed_by
    return "prometheus" if policy.prometheus.url is not None else "samples"


def _observed(
    platform: ReleaseReader,
    policy: Policy,
    deployment: Deployment,
    revision: Revision,
    now: datetime,
    rules: Soak,
) -> list[Stretch]:
    how = observed_by(policy, rules)
    if how == "age":
        return [Stretch(first=revision.created, last=now, healthy=True)]
    if how == "samples":
        known = platform.store.read(_key(deployment, revision))
        if known is None or known.value["build"] != revision.build.digest:
            return []
        return _STRETCHES.validate_python(known.value["stretches"])
    metrics = DeploymentMetrics.of(policy, deployment, lambda: platform.replicas(deployment))
    if metrics is None or now <= revision.created:
        return []
    with closing(metrics):
        # Older data than a whole soak is not needed.
        start = max(revision.created, now - rules.maximum - rules.minimum)
        return stretches_of(metrics.uptime(start, now), revision.capacity, rules)


def stretches_of(uptime: Uptime, capacity: int, rules: Soak) -> list[Stretch]:
    """Return the scrapes of a deployment as stretches; a restart begins one."""
    restarts = set(uptime.restarts)
    stretches: list[Stretch] = []
    for at, up in uptime.moments:
        sample = Sample(
            at=datetime.fromtimestamp(at, UTC),
            healthy=up >= capacity,
            why="" if up >= capacity else f"{of_total(up, capacity, 'server')} up",
            restarts={},
        )
        _extend(stretches, sample, at in restarts, rules.max_gap)
    return stretches


def _added(
    stretches: list[Stretch], restarts: dict[str, int], sample: Sample, rules: Soak
) -> list[Stretch]:
    more = [name for name, n in sample.restarts.items() if n > restarts.get(name, n)]
    _extend(stretches, sample, bool(more), rules.max_gap)
    return stretches[-_MOST_STRETCHES:]


def _extend(stretches: list[Stretch], sample: Sample, restarted: bool, max_gap: timedelta) -> None:
    last = stretches[-1] if stretches else None
    if (
        last is not None
        and not restarted
        and (last.healthy, last.why) == (sample.healthy, sample.why)
        and sample.at - last.last <= max_gap
    ):
        stretches[-1] = replace(last, last=sample.at)
        return
    stretches.append(
        Stretch(
            first=sample.at,
            last=sample.at,
            healthy=sample.healthy,
            why=sample.why,
            restarted=restarted,
        )
    )


def _key(deployment: Deployment, revision: Revision) -> str:
    return f"soak/{deployment.release}/{revision.number:08d}"
