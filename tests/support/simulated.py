"""A platform, its store and a clock in memory: a test turns and breaks them by hand."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from support.crashing import Killed

from vllm_rollout.model.deployment import (
    Build,
    Canary,
    Deployment,
    Replica,
    Revision,
    RevisionStatus,
    Target,
    canonical_digest,
    newest_served,
)
from vllm_rollout.model.errors import DeployError, RolloutError, UnreachableError, UsageError
from vllm_rollout.model.live_figures import Usage
from vllm_rollout.model.symptoms import Symptoms
from vllm_rollout.platform.base import (
    ConflictError,
    Entry,
    ForeignChangeError,
    ForeignWeightsError,
    Lease,
    LeaseHeldError,
    LiveObject,
    LiveObjects,
    NotReadyError,
    PathErrors,
    Route,
    Weights,
)
from vllm_rollout.platform.writer import Guard

ALL_STABLE = Weights(stable=1)
LONG_AGO = timedelta(hours=30)
WEDNESDAY = datetime(2026, 11, 18, 10, 0, tzinfo=UTC)


class FakeClock:
    """Sleeping moves the clock and costs nothing; `meanwhile` is what other threads would do."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.wall = timedelta()
        """By how much the wall clock was stepped."""
        self.meanwhile: Callable[[], None] = lambda: None

    def now(self) -> datetime:
        return WEDNESDAY + timedelta(seconds=self.seconds) + self.wall

    def monotonic(self) -> float:
        return self.seconds

    def sleep(self, duration: timedelta) -> None:
        self.seconds += duration.total_seconds()
        self.meanwhile()


class MemoryStore:
    """The store's contract, in memory."""

    def __init__(self, clock: FakeClock) -> None:
        self.entries: dict[str, Entry] = {}
        self.leases: dict[str, Lease] = {}
        self.clock = clock
        self.written = 0

    def read(self, key: str) -> Entry | None:
        return self.entries.get(key)

    def write(self, key: str, value: Any, *, expect: str | None) -> str:
        known = self.entries.get(key)
        if (known.version if known else None) != expect:
            raise ConflictError(f"{key} is at another version")
        version = str(int(known.version) + 1) if known else "1"
        self.entries[key] = Entry(key, value, version)
        return version

    def keys(self, prefix: str) -> list[str]:
        return sorted(key for key in self.entries if key.startswith(prefix))

    def acquire(
        self, name: str, holder: str, *, ttl: timedelta, over: Lease | None = None
    ) -> Lease:
        held = self.leases.get(name)
        if held and held.holder != holder and (over is None or over.version != held.version):
            raise LeaseHeldError(held)
        after = held.holder if held and held.holder != holder else ""
        return self._put(name, holder, ttl, after)

    def renew(self, name: str, holder: str, *, ttl: timedelta) -> Lease:
        held = self.leases.get(name)
        if held is None or held.holder != holder:
            raise ConflictError(f"the lease of {name} is {held.holder if held else 'nobody'}'s")
        return self._put(name, holder, ttl)

    def release(self, name: str, holder: str) -> None:
        if name in self.leases and self.leases[name].holder == holder:
            del self.leases[name]

    def _put(self, name: str, holder: str, ttl: timedelta, after: str = "") -> Lease:
        self.written += 1
        expires = self.clock.now() + ttl
        self.leases[name] = Lease(name, holder, expires, str(self.written), after)
        return self.leases[name]


@dataclass
class SimulatedPlatform:
    """Releases as Helm keeps them. `in_change` is called in the middle of each change.

    `never_ready` are the digests of builds whose replicas do not come up; what served before goes
    on serving then.
    """

    store: MemoryStore
    clock: FakeClock
    releases: dict[str, list[Revision]] = field(default_factory=dict)
    made_of: dict[str, dict[str, Any]] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    fail_apply_at: int | None = None
    fail_rollback: bool = False
    kill_at: str = ""
    trouble: Sequence[Symptoms] = ()
    never_ready: set[str] = field(default_factory=set)
    never_ready_again: set[str] = field(default_factory=set)
    """Builds that came up once, and would not be brought up by a rollback."""
    images: dict[str, str] = field(default_factory=dict)
    """What replicas run, by environment; where it is not said they run no images."""
    away: int = 0
    """How many rollbacks find the platform out of reach."""
    in_change: Callable[[str], None] = lambda _call: None
    name: str = "simulated"
    guarded_by: Guard | None = None
    failing: set[str] = field(default_factory=set)
    """Calls whose replicas do not come up."""
    unready: dict[str, int] = field(default_factory=dict)
    """By release: how many of its replicas are not ready."""
    divided: dict[str, Weights] = field(default_factory=dict)
    """By release: how its traffic is divided, where that was ever changed."""
    differences: dict[str, Sequence[str]] = field(default_factory=dict)
    """By environment: how what runs differs from what was rendered."""
    conflicts: Sequence[str] = ()
    """Fields of production that somebody else has set; `refuses` is whether a change is refused."""
    refuses: bool = False
    refusal: RolloutError | None = None
    """Raised by a change before anything is changed."""
    expected: dict[str, str | None] = field(default_factory=dict)
    """By environment: what its history must have, None where that is not written down."""
    objects: dict[str, LiveObject] = field(default_factory=dict)
    """What runs replicas of production and its canary, where a test needs that."""
    scalers: Sequence[str] = ()
    has_route: bool = True
    """Whether there is something that divides traffic."""

    def guard(self, guard: Guard) -> None:
        self.guarded_by = guard

    def base_url(self, deployment: Deployment) -> str:
        return f"http://{deployment.release}"

    def route(self, deployment: Deployment) -> Route:
        return Route(url=self.base_url(deployment))

    def own_url(self, deployment: Deployment) -> str:
        return self.base_url(deployment)

    def replica_url(self, deployment: Deployment, replica: Replica) -> str:
        return replica.address

    def weights(self, deployment: Deployment) -> Weights:
        if not self.has_route:
            raise UsageError(f"nothing divides the traffic of {deployment}")
        return self.divided.get(deployment.release, ALL_STABLE)

    def set_weights(
        self,
        deployment: Deployment,
        weights: Weights,
        *,
        expect: Weights | None,
        timeout: timedelta,
    ) -> None:
        now = self.weights(deployment)
        if expect is not None and now != expect:
            raise ForeignWeightsError(now.foreign(expect))
        self._call(f"weights {_named(deployment)} {weights}")
        self.divided[deployment.release] = weights
        self.in_change(self.calls[-1])

    def ready(self, deployment: Deployment) -> int:
        """How many replicas of a release are ready."""
        return sum(replica.ready for replica in self.replicas(deployment))

    def path_errors(self, deployment: Deployment) -> PathErrors:
        return PathErrors()

    def history(self, deployment: Deployment) -> Sequence[Revision]:
        return list(self.releases.get(deployment.release, []))

    def expected_history(self, deployment: Deployment) -> str | None:
        return self.expected.get(deployment.environment, "")

    def values(self, deployment: Deployment, revision: int) -> dict[str, Any]:
        build = self.releases[deployment.release][revision - 1].build
        return self.made_of[build.digest]

    def build(self, deployment: Deployment, values: dict[str, Any]) -> Build:
        build = Build(values_digest=canonical_digest(values))
        self.made_of[build.digest] = values
        return build

    def running_differences(self, deployment: Deployment) -> Sequence[str]:
        return self.differences.get(deployment.environment, ())

    def live_objects(self, deployment: Deployment) -> LiveObjects:
        return dict(self.objects)

    def autoscaled_by(self, deployment: Deployment) -> Sequence[str]:
        return self.scalers

    def preflight(
        self,
        deployment: Deployment,
        values: Mapping[str, Any],
        *,
        capacity: int,
        steps: Sequence[int] = (),
    ) -> None:
        return None

    def apply(
        self, deployment: Deployment, target: Target, *, description: str, timeout: timedelta
    ) -> Revision:
        if self.conflicts and self.refuses:
            raise ForeignChangeError(f"{deployment} is not changed: {'; '.join(self.conflicts)}")
        if self.refusal:
            raise self.refusal
        self._call(f"apply {_named(deployment)} {target.replicas}/{target.capacity}")
        fails = self.fail_apply_at == target.replicas or self.calls[-1] in self.failing
        return self._bring_up(
            deployment, target.build, target.replicas, target.capacity, description, fails=fails
        )

    def rollback(
        self, deployment: Deployment, revision: int, *, description: str, timeout: timedelta
    ) -> Revision:
        self._call(f"rollback {_named(deployment)} {revision}")
        if self.fail_rollback:
            raise DeployError("helm rollback timed out")
        if self.away:
            self.away -= 1
            raise UnreachableError("no answer", address="simulated")
        old = self.releases[deployment.release][revision - 1]
        if old.build.digest in self.never_ready_again:
            raise DeployError("not ready in time")
        self.conflicts = ()
        return self._bring_up(deployment, old.build, old.replicas, old.capacity, description)

    def field_conflicts(self, deployment: Deployment, revision: int | None = None) -> Sequence[str]:
        return self.conflicts

    def uninstall(self, deployment: Deployment, *, timeout: timedelta) -> None:
        self._call(f"uninstall {_named(deployment)}")
        self.releases.pop(deployment.release, None)
        self.in_change(self.calls[-1])

    def undo_command(self, deployment: Deployment, revision: int | None) -> str:
        return ""

    def recover(self, deployment: Deployment, *, timeout: timedelta) -> str:
        history = self.releases.get(deployment.release, [])
        if not history or history[-1].status is not RevisionStatus.PENDING:
            return ""
        if self.guarded_by:
            self.guarded_by.ensure()
        history[-1] = replace(history[-1], status=RevisionStatus.FAILED)
        return f"revision {history[-1].number} was left pending"

    def replicas(self, deployment: Deployment) -> Sequence[Replica]:
        history = self.history(deployment)
        serving = newest_served(history)
        count = serving.capacity if serving else sum(r.replicas for r in history[-1:])
        unready = self.unready.get(deployment.release, 0)
        image = self.images.get(deployment.environment)
        return [
            Replica(name=f"r{i}", phase="Running", ready=i >= unready, restarts=0, image=image)
            for i in range(count)
        ]

    def usage(self, deployment: Deployment) -> Usage:
        return Usage(source="the simulated platform", unknown="it measures nothing")

    def logs(self, deployment: Deployment, *, tail: int = 100) -> str:
        return ""

    def symptoms(self, deployment: Deployment) -> Sequence[Symptoms]:
        return [Symptoms(replica=replica) for replica in self.replicas(deployment)]

    def deploy(self, deployment: Deployment, values: dict[str, Any], *, replicas: int = 1) -> Build:
        """Put a whole build in place, as if long ago."""
        build = self.build(deployment, values)
        self._add(deployment, build, replicas, replicas, "deployed by the test", age=LONG_AGO)
        return build

    def changed_by_hand(
        self, deployment: Deployment, values: dict[str, Any], description: str
    ) -> Revision:
        """A person's own `helm upgrade` or `helm rollback`, without the suite."""
        build = self.build(deployment, values)
        return self._add(deployment, build, 4, 4, description)

    def serving(self, deployment: Deployment) -> tuple[str, int, int] | None:
        """The build that serves, and how many of the replicas run it."""
        history = self.releases.get(deployment.release)
        newest = newest_served(history) if history else None
        return (newest.build.digest, newest.replicas, newest.capacity) if newest else None

    def _call(self, call: str) -> None:
        if self.guarded_by:
            self.guarded_by.ensure()
        self.calls.append(call)
        if self.kill_at == call:
            self.kill_at = ""
            raise Killed

    def _bring_up(
        self,
        deployment: Deployment,
        build: Build,
        replicas: int,
        capacity: int,
        description: str,
        *,
        fails: bool = False,
    ) -> Revision:
        """A pending revision first; it replaces what serves only when its replicas are ready."""
        history = self.releases.setdefault(deployment.release, [])
        if history and history[-1].status is RevisionStatus.PENDING:
            raise ConflictError("another operation is in progress")
        pending = Revision(
            number=len(history) + 1,
            build=build,
            status=RevisionStatus.PENDING,
            created=self.clock.now(),
            description=description,
            replicas=replicas,
            capacity=capacity,
        )
        history.append(pending)
        self.in_change(self.calls[-1])
        if history[-1] != pending:
            raise DeployError(f"revision {pending.number} was withdrawn by another")
        history.pop()
        if fails or build.digest in self.never_ready:
            history.append(replace(pending, status=RevisionStatus.FAILED))
            raise NotReadyError("not ready in time", symptoms=self.trouble)
        return self._add(deployment, build, replicas, capacity, description)

    def _add(
        self,
        deployment: Deployment,
        build: Build,
        replicas: int,
        capacity: int,
        description: str,
        *,
        age: timedelta = timedelta(),
    ) -> Revision:
        history = self.releases.setdefault(deployment.release, [])
        history[:] = [
            replace(r, status=RevisionStatus.SUPERSEDED)
            if r.status is RevisionStatus.DEPLOYED
            else r
            for r in history
        ]
        history.append(
            Revision(
                number=len(history) + 1,
                build=build,
                status=RevisionStatus.DEPLOYED,
                created=self.clock.now() - age,
                description=description,
                replicas=replicas,
                capacity=capacity,
            )
        )
        return history[-1]


def _named(deployment: Deployment) -> str:
    side = " canary" if isinstance(deployment, Canary) else ""
    return deployment.environment + side
