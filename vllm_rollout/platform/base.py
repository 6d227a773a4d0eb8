"""The seam between the suite and where it runs.

Nothing above `platform/` asks which platform it has. A platform manages releases and keeps what
must outlive a job, next to the releases themselves: `reader.py` reads both, `writer.py` changes
them. Here are the nouns and errors of the two.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from vllm_rollout.model.errors import DeployError, ExitCode, RolloutError, UnreachableError
from vllm_rollout.model.symptoms import Symptoms


class ConflictError(RolloutError):
    """Someone else wrote the entry first (compare-and-set failed) or holds the lease."""

    exit_code = ExitCode.INCONCLUSIVE


class ForeignChangeError(RolloutError):
    """Somebody else has changed a release since this run's last step: they decide about it."""

    exit_code = ExitCode.INCONCLUSIVE


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
    """The right to change a model's releases, until it expires unless renewed.

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """A deployment's address, and how it is reached from here ("" if directly)."""

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
    """Connectivity errors on the path to a deployment, without the deployment's own errors.

    `count` is how often, `what` the last of it, `address` what did not do its part then.
    """

    count: int = 0
    what: str = ""
    address: str = ""

    def __add__(self, other: "PathErrors") -> "PathErrors":
        """Return the errors of two paths to one deployment."""
        told = other if other.count else self
        return replace(told, count=self.count + other.count)

    def since(self, before: "PathErrors") -> UnreachableError | None:
        """Return the connectivity error since `before` was asked for; None without one."""
        if self.count == before.count:
            return None
        return UnreachableError(
            f"the way there failed, which says nothing of the deployment: {self.what}",
            address=self.address,
        )
