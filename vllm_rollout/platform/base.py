"""The seam between the suite and where it runs.

Nothing above `platform/` asks which platform it has. A platform manages releases and keeps what
must outlive a job, next to the releases themselves: `reader.py` reads both, `writer.py` changes
them. Here are the nouns and errors of the two.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from vllm_rollout.model.deployment import Replica
from vllm_rollout.model.errors import DeployError, ExitCode, RolloutError, UnreachableError
from vllm_rollout.model.symptoms import Symptoms
from vllm_rollout.model.units import counted

ROUTER_GONE = "RouterGone"
"""Reason of a replica that nobody passes requests to; its message names the command to run."""


class ConflictError(RolloutError):
    """Someone else wrote the entry first (compare-and-set failed) or holds the lease."""

    exit_code = ExitCode.INCONCLUSIVE


class ForeignChangeError(RolloutError):
    """Somebody else has changed a release since this run's last step: they decide about it."""

    exit_code = ExitCode.INCONCLUSIVE


class ForeignWeightsError(ForeignChangeError):
    """Somebody else divides a release's traffic, and so decides about its canary, too."""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveObject:
    """An object of a release as it is: its fields by path, and who has set them last.

    `set_by` has those by the first two steps of a path (`spec.template`), and under "" the last of
    all.
    """

    fields: Mapping[str, Any]
    set_by: Mapping[str, str] = field(default_factory=dict)

    def by(self, path: str = "") -> str:
        """Return `, set by NAME`, or nothing where that is not known."""
        found = self.set_by.get(".".join(path.split(".")[:2])) or self.set_by.get("", "")
        return _by(found)


LiveObjects = Mapping[str, LiveObject]
"""By kind and name."""

_SHOWN = 5


def changed_objects(left: LiveObjects, now: LiveObjects) -> list[str]:
    """Return how objects differ from how they were left, a line for each field or object."""
    lines = [f"{name} is gone" for name in left if name not in now]
    for name, live in now.items():
        if name not in left:
            lines.append(f"{name} is new{live.by()}")
            continue
        before = left[name].fields
        paths = [p for p in {**before, **live.fields} if before.get(p) != live.fields.get(p)]
        lines += [
            f"{path} of {name} is {_shown(live.fields.get(path))}{live.by(path)}, and was "
            f"{_shown(before.get(path))}"
            for path in paths[:_SHOWN]
        ]
        if len(paths) > _SHOWN:
            lines.append(f"{counted(len(paths) - _SHOWN, 'more field')} of {name}")
    return lines


def paused_objects(objects: LiveObjects) -> list[str]:
    """Return the objects that somebody has paused (`kubectl rollout pause`), a line for each."""
    return [
        f"spec.paused of {name} is true{live.by('spec.paused')}"
        for name, live in objects.items()
        if live.fields.get("spec.paused")
    ]


def _by(manager: str) -> str:
    return f", set by {manager}" if manager else ""


def _shown(value: Any) -> str:
    return "not set" if value is None else json.dumps(value, ensure_ascii=False)


WHOLE_WEIGHT = 10_000
"""What the two weights of a ramp's step come to: shares are exact to a hundredth of a percent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """How users' traffic is divided between a release and its canary, as the route has it.

    `canary` is None where the route does not name the canary at all, `set_by` who has set any of
    it last, where that is known.
    """

    stable: int
    canary: int | None = None
    set_by: str = field(default="", compare=False)

    def __str__(self) -> str:
        return f"{self.stable}:{self.canary or 0}"

    def foreign(self, left: "Weights") -> str:
        """Say that these are there in place of those that were `left`."""
        return f"the traffic's weights are {self}{_by(self.set_by)}, and were {left}"

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
    """How a release's traffic is divided cannot be changed."""


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
            f"the connection failed, which says nothing of the deployment: {self.what}",
            address=self.address,
        )


def without_router(replicas: Sequence[Replica]) -> list[str]:
    """Return what replicas that nobody passes requests to say: once, with the command to run."""
    return list(dict.fromkeys(each.message for each in replicas if each.reason == ROUTER_GONE))
