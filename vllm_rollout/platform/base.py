"""The seam between the suite and where it runs.

Nothing above `platform/` asks which platform it has. A platform manages releases (`Platform`)
and keeps what must outlive a job (`Store`), next to the releases themselves.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Protocol

from vllm_rollout.model.deployment import Build, Deployment, Replica, Revision, Target
from vllm_rollout.model.errors import DeployError, ExitCode, RolloutError, UnreachableError
from vllm_rollout.model.preflight_facts import Preflight
from vllm_rollout.model.symptoms import Symptoms


class ConflictError(RolloutError):
    """Someone else wrote the entry first (compare-and-set failed) or holds the lease."""

    exit_code = ExitCode.INCONCLUSIVE


class Guard(Protocol):
    """Says whether releases may still be changed: the model's lease, as changes see it."""

    def ensure(self) -> None:
        """Return only if the store says at this moment that the lease is ours.

        Raises:
            RolloutError: it is not, or the store cannot be asked.
        """

    def seconds_left(self) -> float:
        """For how long the lease is surely ours if it is never renewed again; 0 when lost."""


class NotReadyError(DeployError):
    """Replicas did not become ready in time; `symptoms` are what was known of them then."""

    def __init__(self, message: str, *, symptoms: Sequence[Symptoms], remedy: str = "") -> None:
        super().__init__(message, remedy=remedy)
        self.symptoms = tuple(symptoms)


@dataclass(frozen=True, slots=True)
class Entry:
    """A stored JSON document and the version to name when replacing it."""

    key: str
    value: Any
    version: str


@dataclass(frozen=True, slots=True)
class Lease:
    """Who may change a model's releases, and until when unless renewed.

    `version` is another after every renewal. `after` is the holder whose lease this one takes the
    place of, or empty.
    """

    name: str
    holder: str
    expires: datetime
    version: str
    after: str = ""


class LeaseHeldError(ConflictError):
    """Another holds the lease: `lease` is what was seen of it."""

    def __init__(self, lease: Lease, *, remedy: str = "") -> None:
        super().__init__(
            f"{lease.name} is being changed by {lease.holder} until "
            f"{lease.expires:%Y-%m-%d %H:%M:%S} UTC unless renewed",
            remedy=remedy or "Wait for it to end; the lease of a run that is gone runs out.",
        )
        self.lease = lease


class Store(Protocol):
    """Small JSON documents with compare-and-set, and leases. Survives the process and the job."""

    def read(self, key: str) -> Entry | None:
        """The entry, or None."""

    def write(self, key: str, value: Any, *, expect: str | None) -> str:
        """Write `value`; return its version.

        `expect` is the version being replaced, or None if the key must be new.

        Raises:
            ConflictError: the key is at another version.
        """

    def keys(self, prefix: str) -> list[str]:
        """All keys that begin with `prefix`, sorted."""

    def acquire(
        self, name: str, holder: str, *, ttl: timedelta, over: Lease | None = None
    ) -> Lease:
        """Take the lease where it is free, or take it over where it still is exactly `over`.

        Whether a lease has run out is for the caller to know, who saw it unchanged for its time
        to live: clocks of two machines need not agree, and one clock may be stepped.

        Raises:
            LeaseHeldError: another holds it, took it at this moment, or renewed it meanwhile.
            ConflictError: another had it at this moment.
        """

    def renew(self, name: str, holder: str, *, ttl: timedelta) -> Lease:
        """Renew the lease that `holder` has, and never one that it had once.

        Two threads may ask at once.

        Raises:
            ConflictError: it is another's by now, or nobody's: another may have had it between.
        """

    def release(self, name: str, holder: str) -> None:
        """Give the lease up if `holder` has it; otherwise do nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """What a deployment's address is called, and how it is reached from here ("" if directly)."""

    url: str
    how: str = ""

    def __str__(self) -> str:
        return f"{self.url}, {self.how}" if self.how else self.url


WHOLE_WEIGHT = 10_000
"""What the two weights of a ramp's step come to: shares are exact to a hundredth of a percent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """How users' traffic is divided between a release and its canary, as the route has it.

    `canary` is None where the route does not name the canary at all.
    """

    stable: int
    canary: int | None = None

    def __str__(self) -> str:
        return f"{self.stable}:{self.canary or 0}"

    @property
    def canary_share(self) -> float:
        """The canary's share of the traffic, a fraction."""
        total = self.stable + (self.canary or 0)
        return (self.canary or 0) / total if total else 0.0

    @classmethod
    def of_share(cls, share: float) -> "Weights":
        """The weights that give the canary `share` of the traffic, a fraction."""
        canary = round(share * WHOLE_WEIGHT)
        return cls(stable=WHOLE_WEIGHT - canary, canary=canary)


class WeightsChangedError(DeployError):
    """Somebody else has changed how a release's traffic is divided, or it cannot be changed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PathErrors:
    """What has ailed the way to a deployment so far, and not the deployment itself.

    `count` is how often, `what` the last of it, `address` what did not do its part then.
    """

    count: int = 0
    what: str = ""
    address: str = ""

    def __add__(self, other: "PathErrors") -> "PathErrors":
        """Of two ways to one deployment."""
        told = other if other.count else self
        return replace(told, count=self.count + other.count)

    def since(self, before: "PathErrors") -> UnreachableError | None:
        """What has ailed the way since `before` was asked for; None if nothing."""
        if self.count == before.count:
            return None
        return UnreachableError(
            f"the way there failed, which says nothing of the deployment: {self.what}",
            address=self.address,
        )


class Platform(Protocol):
    """Releases and their revisions. Each change makes a new revision, as Helm does."""

    @property
    def name(self) -> str:
        """`kubernetes` or `local`."""

    @property
    def store(self) -> Store:
        """Where evidence, journal and lock are kept."""

    def guard(self, guard: Guard) -> None:
        """Ask `guard` from now on right before each request that changes a release.

        What takes its time (a Helm command) is ended when the guard has no seconds left.
        """

    def base_url(self, deployment: Deployment) -> str:
        """The URL to connect to for the deployment, without a trailing slash."""

    def route(self, deployment: Deployment) -> Route:
        """What that address is called and how it is reached, for people; opens nothing."""

    def own_url(self, deployment: Deployment) -> str:
        """The URL of the release's own replicas, whatever of its traffic goes to the canary."""

    def weights(self, deployment: Deployment) -> Weights:
        """How the deployment's traffic is divided now.

        Raises:
            UsageError: there is nothing that divides it; the message says what is missing.
        """

    def set_weights(
        self,
        deployment: Deployment,
        weights: Weights,
        *,
        expect: Weights | None,
        timeout: timedelta,
    ) -> None:
        """Divide the deployment's traffic, and return when that holds.

        `expect` is what it must be until now; None takes whatever there is.

        Raises:
            WeightsChangedError: it is something else, or not in force within `timeout`.
            UsageError: as `weights`.
        """

    def path_errors(self, deployment: Deployment) -> PathErrors:
        """What has ailed the way to that address so far; nothing ever where it is direct.

        Asked before and after an observation: what failed meanwhile may be the way's doing.
        """

    def history(self, deployment: Deployment) -> Sequence[Revision]:
        """All revisions, oldest first; empty when the release does not exist."""

    def values(self, deployment: Deployment, revision: int) -> dict[str, Any]:
        """The values the revision's build was made of, the environment's overlay left out."""

    def build(self, deployment: Deployment, values: dict[str, Any]) -> Build:
        """The build that `values` make, resolved to digests as far as the platform can."""

    def preflight(
        self, deployment: Deployment, values: Mapping[str, Any], *, capacity: int
    ) -> Preflight | None:
        """The facts about deploying `values` with `capacity` replicas, before it is done.

        None where there is nothing to look at beforehand.
        """

    def apply(
        self, deployment: Deployment, target: Target, *, description: str, timeout: timedelta
    ) -> Revision:
        """Bring the release to `target` in a new revision and wait until its replicas are ready.

        Raises:
            DeployError: not ready within `timeout`; the failed revision stays in the history. It
                is a NotReadyError where more is known.
            UnreachableError: the platform did not answer.
        """

    def rollback(
        self, deployment: Deployment, revision: int, *, description: str, timeout: timedelta
    ) -> Revision:
        """Make a new revision with the state of `revision` and wait until it is ready.

        Raises: as `apply`.
        """

    def uninstall(self, deployment: Deployment, *, timeout: timedelta) -> None:
        """Remove the release and everything that serves it. Removing nothing is no error."""

    def undo_command(self, deployment: Deployment, revision: int | None) -> str:
        """What to type to return to `revision` (None: to nothing deployed) without this suite.

        Empty where it takes the suite.
        """

    def recover(self, deployment: Deployment, *, timeout: timedelta) -> str:
        """Clear what a killed client left half done, within `timeout`; say what was found, or "".

        Only for the holder of the model's lease: a dead client cannot be told from a slow one.
        """

    def replicas(self, deployment: Deployment) -> Sequence[Replica]:
        """The replicas that exist now, with what is known of their health."""

    def logs(self, deployment: Deployment, *, tail: int = 100) -> str:
        """The last `tail` log lines of each replica, secrets redacted."""

    def symptoms(self, deployment: Deployment) -> Sequence[Symptoms]:
        """What is known of each replica, and of those that could not be made."""
