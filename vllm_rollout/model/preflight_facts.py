"""Facts known before a build is deployed, without an opinion whether they suffice."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from vllm_rollout.model.units import counted


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendering:
    """The objects that a chart makes of the values; none, and why, where it makes none."""

    objects: tuple[Mapping[str, Any], ...] = ()
    complaint: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """The pods that one workload of a release shall run, each asking for `requests`.

    `surge` pods more run while the old ones are replaced. `refused` says of nodes, by name, why
    they take no such pod whatever their room; those `outside` are not of the nodes that the pod
    selects. `unconsidered` names the pod's rules that were not looked at. Quantities are in base
    units (cores, bytes, pieces).
    """

    workload: str
    pods: int
    surge: int
    requests: Mapping[str, float]
    limits: Mapping[str, float] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    outside: frozenset[str] = frozenset()
    unconsidered: str = ""


def quota_use(requests: Mapping[str, float], limits: Mapping[str, float]) -> dict[str, float]:
    """Return what one pod uses of a ResourceQuota, by the quota's own keys."""
    use = {"pods": 1.0, "count/pods": 1.0}
    use |= {f"requests.{name}": amount for name, amount in requests.items() if name != "pods"}
    use |= {name: requests[name] for name in ("cpu", "memory") if name in requests}
    return use | {f"limits.{name}": amount for name, amount in limits.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSpace:
    """One node: what is free there, and what the release's own pods hold, which they give back."""

    node: str
    free: Mapping[str, float]
    own: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """Pods that a release will run and nodes they may run on; `existing` pods run already."""

    demands: tuple[Demand, ...]
    nodes: tuple[NodeSpace, ...] = ()
    existing: int = 0


def switch_off(check: str) -> str:
    """The policy's line, in backquotes, that leaves out a check of a build that is to come."""
    return f"`environments: {{development: {{preflight: {{{check}: off}}}}}}`"


FREE_A_GPU = (
    "Remove what does not need to serve (vllm-rollout uninstall MODEL -e ENVIRONMENT), ask for "
    "fewer `replicas`, or add GPUs to `local.gpus`."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuRoom:
    """GPUs of one machine that a change takes at once: `needed`, for `replicas` and the `surge`
    beside them while one is replaced. Other releases have `held`, by name, of the `pool`.
    """

    pool: tuple[str, ...]
    held: Mapping[str, int]
    needed: int
    replicas: int
    surge: int = 0

    @property
    def available(self) -> int:
        """How many the release may have."""
        return max(0, len(self.pool) - sum(self.held.values()))

    @property
    def fits(self) -> bool:
        """True if they suffice."""
        return self.needed <= self.available

    def __str__(self) -> str:
        need = counted(self.replicas, "replica") + " need"
        need += f"{'s'[: self.replicas == 1]} {counted(self.needed, 'GPU')}"
        if self.surge:
            need += f" ({self.surge} of them while one is replaced)"
        others = ", ".join(f"{name} has {count}" for name, count in self.held.items())
        there = f"of {len(self.pool)} ({', '.join(self.pool)}) it may have {self.available}"
        return f"{need}; {there}" + (f": {others}" if others else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """Limits of one ResourceQuota: `hard`, `used`, and how much of that is the release's own.

    `unconsidered` names its scopes where they cannot be compared with the pods.
    """

    name: str
    hard: Mapping[str, float]
    used: Mapping[str, float]
    own: Mapping[str, float] = field(default_factory=dict)
    unconsidered: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewObjects:
    """Objects that a rollout makes, by a quota's own keys, and a note on what they are for."""

    counts: Mapping[str, float] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Answer of the API server to an object, in a dry run, that is no consent.

    It would refuse the object now where that is `certain`; else it could not be asked. `webhook` is
    the one that does not answer, if that is why.
    """

    what: str
    reason: str
    certain: bool = True
    webhook: str = ""

    def __str__(self) -> str:
        return f"{self.what}: {self.reason}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """Answers of the API server to `asked` objects and pods: all that are no consent."""

    asked: int
    refusals: tuple[Refusal, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerImage:
    """An image as pods name it, and the (user, password) pairs they may pull it with."""

    reference: str
    credentials: tuple[tuple[str, str], ...] = field(default=(), repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSource:
    """Where the server loads its model from: a Hugging Face id, or a path in the container.

    `path` is empty where the values do not say. `token` is what the pods have; `offline` is
    true where they are configured to ask nobody.
    """

    path: str
    revision: str = ""
    token: str = field(default="", repr=False)
    offline: bool = False

    @property
    def is_local(self) -> bool:
        """True if it is a path inside the container."""
        return self.path.startswith(("/", "."))


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """Something pods need that the chart does not make: a claim, a Secret, a ConfigMap.

    `problem` is empty where it is there and usable, `doubt` where it is certain that all of the
    pods can use it.
    """

    kind: str
    name: str
    problem: str = ""
    doubt: str = ""


class Preflight(Protocol):
    """The facts about one build before it is deployed, each read when it is asked for.

    Every method may raise UnreachableError: then nothing is known.
    """

    def lint(self) -> str:
        """Complaints of the chart's linter; empty when there are none."""

    def rendering(self) -> Rendering:
        """The objects made of the values, the environment's overlay among them."""

    def values_problem(self) -> str:
        """Error in the values or the overlay; empty when there is none."""

    def room(self) -> Room | GpuRoom:
        """Resources that the rollout needs of the nodes, and resources they have."""

    def demands(self) -> Sequence[Demand]:
        """The pods that the rollout runs, without reading the nodes."""

    def namespace(self) -> str:
        """The namespace's phase (Active, Terminating); empty when there is none."""

    def quotas(self) -> Sequence[Quota]:
        """The quotas of the namespace."""

    def new_objects(self) -> NewObjects:
        """Objects that the rollout makes, those of the way back included."""

    def admission(self) -> Admission:
        """The API server's answers to what the rollout would apply, in a dry run."""

    def images(self) -> Sequence[ContainerImage]:
        """Every image that the pods run."""

    def model(self) -> ModelSource:
        """Return where the model comes from."""

    def references(self) -> Sequence[Reference]:
        """Claims, Secrets and ConfigMaps that the pods need."""
