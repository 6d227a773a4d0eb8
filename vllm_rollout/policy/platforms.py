"""Settings that only one platform needs, and the start-up time of a replica by model size."""

import re
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from vllm_rollout.policy.fields import (
    Block,
    Count,
    CountOrZero,
    MayBeOff,
    Name,
    NameTemplate,
    Number,
    Span,
    Text,
    TimeLimit,
    ascending,
    broken_rule,
    once_each,
)


class LoadGenerator(Block):
    """Load made in the cluster (`load.where: cluster`), by the chart load-generator."""

    image: Annotated[Text | None, MayBeOff()]
    """REPOSITORY@sha256:…, an image with this version of vllm-rollout in it."""
    namespace: Annotated[Text | None, MayBeOff()]
    """Namespace of its pods; off means that of the releases."""
    values: Annotated[Text | None, MayBeOff()]
    """Values file for the chart: resources, nodes, the Secret of the bearer key."""
    start_timeout: Span
    """How long its pods may take to be there: images are pulled, nodes are added."""


class Cluster(Block):
    """Where an environment is, if not where the others are."""

    context: Annotated[Text | None, MayBeOff()] = None
    """Context of the kubeconfig; off means that of the command."""
    namespace: Annotated[Name | None, MayBeOff()] = None
    """Namespace of its releases; off means the policy's."""


class Kubernetes(Block):
    """The Kubernetes platform's own settings. Folders are looked for from the working directory."""

    chart: Annotated[Text | None, MayBeOff()]
    """Folder of the chart that releases are made of; off means the suite's own, vllm-deployment."""
    overlays: Annotated[Text | None, MayBeOff()]
    """Folder with a values-ENV.yaml for each environment; off means the chart's."""
    environment_owns: tuple[Text, ...]
    """Paths of the servers' pod templates that may differ between environments; all else is the
    build."""
    reach: Literal["auto", "service", "tunnel"]
    """How service_url is reached: directly, by a tunnel to the pods, or whichever works here."""
    http_route: NameTemplate
    """The HTTPRoute (Gateway API) whose weights divide a release's traffic in a ramp by traffic."""
    helm: Text
    """The Helm command, Helm 3 or Helm 4."""
    field_conflicts: Literal["refuse", "overwrite"]
    """Fields that somebody else has set (`kubectl scale`, `kubectl edit`), in a promotion under
    Helm 4, and Deployments that somebody has paused: it is refused and names them, or overwrites
    them. A rollback always overwrites."""
    load_generator: LoadGenerator
    """Load made in the cluster."""
    surge: CountOrZero
    """Pods that a ramp may run above a release's capacity."""
    unavailable: CountOrZero
    """Pods that may be missing below it meanwhile."""

    @model_validator(mode="after")
    def _can_move(self) -> Self:
        if not self.surge + self.unavailable:
            raise broken_rule("a ramp needs room: surge or unavailable must be above 0", "surge")
        return self


def _gpus(value: object) -> object:
    if value == "auto":
        return value
    names = tuple(map(str, value)) if isinstance(value, list | tuple) else ()
    if not names or not all(re.fullmatch(r"[^\s,]+", name) for name in names):
        raise broken_rule(
            "must be auto, off, or a list of GPUs as CUDA_VISIBLE_DEVICES has them: [0, 1]"
        )
    return once_each(names)


Gpus = Annotated[
    Literal["auto"] | tuple[str, ...],
    BeforeValidator(_gpus),
    WithJsonSchema(
        {
            "anyOf": [
                {"const": "auto"},
                {"type": "array", "items": {"type": ["integer", "string"]}, "minItems": 1},
            ]
        }
    ),
]
"""GPUs of one machine."""


class Local(Block):
    """The local platform's own settings."""

    state: Text
    """Folder of its state, from the working directory."""
    startup_timeout: Span
    """How long a replica may take to become ready."""
    max_restarts: CountOrZero
    """Restarts before a replica is left down."""
    drain: TimeLimit
    """How long a replica that leaves may answer its open requests, before they are cut. `at least`:
    longer where a gate, load or probe may wait longer for an answer."""
    gpus: Annotated[Gpus | None, MayBeOff()]
    """GPUs that replicas of all models share, each GPU one replica's alone: those that nvidia-smi
    lists (auto), or a list; off means that replicas are given none."""

    @property
    def startup_timeout_seconds(self) -> float:
        """`startup_timeout` in seconds."""
        return self.startup_timeout.total_seconds()


_SIZE_IN_NAME = re.compile(r"(?:^|-)(?:([0-9]+)x)?([0-9]+(?:\.[0-9]+)?)b(?:-|$)")


def guess_parameters(model: str) -> float | None:
    """Billions of parameters by a model's name, or None: llama-2-7b 7, x-1.5b 1.5, m-8x7b 56."""
    found = _SIZE_IN_NAME.search(model)
    return int(found[1] or 1) * float(found[2]) if found else None


class StartupThreshold(Block):
    """failureThreshold of models up to a size."""

    up_to: Annotated[Number, Field(gt=0)]
    """Billions of parameters."""
    failure_threshold: Count
    """Probes that may fail before a replica is given up."""


class StartupProbe(Block):
    """How long a model may take to load."""

    period: Span
    """Time between probes."""
    thresholds: Annotated[tuple[StartupThreshold, ...], Field(min_length=1)]
    """The first row whose `up_to` fits a model counts for it."""

    @model_validator(mode="after")
    def _grows(self) -> Self:
        if not ascending(row.up_to for row in self.thresholds):
            raise broken_rule("up_to must grow from row to row", "thresholds")
        return self

    @property
    def period_seconds(self) -> float:
        """`period` in seconds."""
        return self.period.total_seconds()

    def failure_threshold(self, parameters: float | None) -> int | None:
        """The threshold for `parameters` billions; None when unknown or larger than every row."""
        if parameters is None:
            return None
        fitting = (row.failure_threshold for row in self.thresholds if parameters <= row.up_to)
        return next(fitting, None)
