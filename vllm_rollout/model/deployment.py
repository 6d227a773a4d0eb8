"""The nouns everything else speaks of: deployment, build, revision, replica.

They hold no behaviour beyond their own identity, so every layer may import them.
"""

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from vllm_rollout.model.errors import UsageError

DEFAULT_NAMESPACE = "system"
_DNS_1123 = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_HELM_RELEASE_MAX = 53
_SERVED_NAME = re.compile(r"""[^\s"'`\\{}$<>|;&]{1,256}""")
_LABEL_OF_SERVED = 40
"""Leaves room for an environment's name."""
_SERVED_AS = (
    " A name that only the server has goes into `models.llama-2-7b.served_as`; with --base-url, "
    "--model takes it as it is."
)


def checked_name(kind: str, name: str, *, longest: int = _HELM_RELEASE_MAX) -> str:
    """Return `name` if it is a DNS-1123 label of at most `longest` characters.

    Names reach Helm, URLs and PromQL, so this is asked of every one before it goes anywhere.

    Raises:
        UsageError: it is not; the message says which character or length is wrong.
    """
    if not is_label(name, longest=longest):
        raise UsageError(
            f"{kind} {name!r} is not a DNS-1123 label",
            remedy=f"Use lower-case letters, digits and inner '-', {longest} characters at most, "
            f"for example llama-2-7b.{_SERVED_AS if kind == 'model' else ''}",
        )
    return name


def is_label(name: str, *, longest: int = _HELM_RELEASE_MAX) -> bool:
    """Return True if `name` is a DNS-1123 label of at most `longest` characters."""
    return bool(_DNS_1123.fullmatch(name)) and len(name) <= longest


def checked_served_name(name: str) -> str:
    """Return `name` if a server may call a model so: printable, without spaces or quotes.

    It reaches requests, PromQL and commands.

    Raises:
        UsageError: it may not.
    """
    if not name.isprintable() or not _SERVED_NAME.fullmatch(name):
        raise UsageError(
            f"{name[:100]!r} is no name that a server gives a model",
            remedy="Write it as /v1/models lists it, for example meta-llama/Llama-2-7b.",
        )
    return name


def label_for(served: str) -> str:
    """Return a DNS-1123 label that stands for a served name: its last part, in small letters.

    Raises:
        UsageError: the name has nothing to make one of.
    """
    last = checked_served_name(served).rstrip("/").rpartition("/")[2].lower()
    label = re.sub(r"[^a-z0-9]+", "-", last)[:_LABEL_OF_SERVED].strip("-")
    return checked_name("model", label or served)


@dataclass(frozen=True, slots=True)
class Deployment:
    """One model in one environment: the release `{model}-{environment}` in `namespace`."""

    model: str
    environment: str
    namespace: str = DEFAULT_NAMESPACE

    def __post_init__(self) -> None:
        checked_name("model", self.model)
        checked_name("environment", self.environment)
        checked_name("namespace", self.namespace, longest=63)
        checked_name("release", self.release)

    @property
    def release(self) -> str:
        """The name of the release, of the Service and of the `app.kubernetes.io/instance` label."""
        return f"{self.model}-{self.environment}"

    @property
    def canary(self) -> "Canary":
        """The release beside this one, while a ramp moves traffic.

        Raises:
            UsageError: its name would be too long.
        """
        return Canary(self.model, self.environment, self.namespace)

    def __str__(self) -> str:
        return f"{self.environment}/{self.model}"


@dataclass(frozen=True, slots=True)
class Canary(Deployment):
    """A deployment's canary: the release `{model}-{environment}-canary`, the same in all else."""

    @property
    def release(self) -> str:
        """The name of the release, of the Service and of the `app.kubernetes.io/instance` label."""
        return f"{self.model}-{self.environment}-canary"

    def __str__(self) -> str:
        return f"the canary of {self.environment}/{self.model}"


def canonical_digest(value: Any) -> str:
    """SHA-256 (`sha256:<hex>`) of `value` as JSON with sorted keys and no spaces."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def short_digest(digest: str, digits: int = 12) -> str:
    """The first hex digits of a digest, for display."""
    return digest.removeprefix("sha256:")[:digits]


def strict_json(value: Any) -> Any:
    """`value` as strict JSON can hold it.

    JSON has no infinity (a bound among unanswered requests): it is written as text, which
    pydantic reads back as the number. UTF-8 has no lone surrogates, and model output may.
    """
    if isinstance(value, dict):
        return {strict_json(key): strict_json(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [strict_json(inner) for inner in value]
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    return "Infinity" if value == math.inf else value


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """Identity of what is rolled out: what is served, and what that was made of.

    `served_digest` is of the rendered pod templates, without what an environment may own. A field
    is None where the platform has no such thing (the local platform has no chart).
    """

    chart_digest: str | None = None
    values_digest: str | None = None
    image_digest: str | None = None
    model_revision: str | None = None
    served_digest: str | None = None

    @property
    def digest(self) -> str:
        """The build's own identity: the digest of its parts."""
        return canonical_digest(self.parts())

    def parts(self) -> dict[str, str | None]:
        """The fields; a `served_digest` that is None is left out, so that digests made before
        there were any stay what they were."""
        parts: dict[str, str | None] = asdict(self)
        if self.served_digest is None:
            del parts["served_digest"]
        return parts

    @property
    def of_earlier_version(self) -> bool:
        """True if it was made by a version that did not look at what a chart renders."""
        return self.chart_digest is not None and self.served_digest is None

    @property
    def short(self) -> str:
        """The first twelve hex digits of `digest`, for display."""
        return short_digest(self.digest)

    def differences(self, other: "Build") -> list[str]:
        """One line for each part in which `other` differs, `part: here -> there`."""
        if self.of_earlier_version != other.of_earlier_version:
            old = self if self.of_earlier_version else other
            why = "did not look at what is rendered: deploy it with this version, and gate again"
            return [
                f"build {old.short} was gated by an earlier version of vllm-rollout, which {why}"
            ]
        mine, theirs = asdict(self), asdict(other)
        return [f"{key}: {mine[key]} -> {theirs[key]}" for key in mine if mine[key] != theirs[key]]


class RevisionStatus(StrEnum):
    """State of a revision, in Helm's words."""

    DEPLOYED = "deployed"
    SUPERSEDED = "superseded"
    FAILED = "failed"
    PENDING = "pending"


@dataclass(frozen=True, slots=True, kw_only=True)
class Revision:
    """One entry of a release's history.

    `build` is the newest build in it. While a ramp is under way `replicas` of `capacity`
    replicas run it and the rest still run the build before. Where it is `autoscaled` these are the
    numbers that an autoscaler asks for now.
    """

    number: int
    build: Build
    status: RevisionStatus
    created: datetime
    description: str
    replicas: int
    capacity: int
    autoscaled: bool = False

    @property
    def complete(self) -> bool:
        """True if every replica runs `build`, so no ramp is half way."""
        return self.replicas >= self.capacity

    def was_made(self, at: datetime) -> bool:
        """True if it is that of its number which was made then, and none of a release that was
        removed since. Clients tell the time to the second at least."""
        return abs(self.created - at) < timedelta(seconds=1)


def newest_served(history: Sequence[Revision]) -> Revision | None:
    """The newest revision that is deployed; None where nothing is."""
    return next((r for r in reversed(history) if r.status is RevisionStatus.DEPLOYED), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Replica:
    """One pod, or one process of the local platform.

    `phase` uses Kubernetes' words (Pending, Running, Failed, …); `reason` is the waiting or
    termination reason (CrashLoopBackOff, OOMKilled, …) or empty; `address` is the URL of this
    one replica, or empty where it has none that can be reached from here; `host` is where others in
    its cluster reach it, or empty. A `follower` serves by another replica, which has the server.
    `image` is the digest of
    the image that it really runs, empty where that is not known, None where it runs none. `command`
    is its command line, empty where that is not known.
    """

    name: str
    phase: str
    ready: bool
    restarts: int
    build: str = ""
    reason: str = ""
    message: str = ""
    address: str = ""
    image: str | None = None
    command: tuple[str, ...] = ()
    host: str = ""
    ready_since: datetime | None = None
    follower: bool = False


def images_of(replicas: Sequence[Replica]) -> tuple[str, ...]:
    """The digests of the images that the ready ones run, as far as they are known, sorted."""
    return tuple(sorted({r.image for r in replicas if r.ready and r.image}))


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A build to serve and how much of a release it shall take.

    `replicas` of `capacity` replicas run the build (`values` are what it was made of); the
    others keep running what the release ran before.
    """

    build: Build
    values: Mapping[str, Any] = field(default_factory=dict)
    replicas: int
    capacity: int

    def __post_init__(self) -> None:
        if not 1 <= self.replicas <= self.capacity:
            raise ValueError(f"{self.replicas} of {self.capacity} replicas is not a ramp step")
