"""Settings that only one platform needs."""

from typing import Annotated, Literal, Self

from pydantic import model_validator

from vllm_rollout.policy.fields import (
    Block,
    CountOrZero,
    MayBeOff,
    NameTemplate,
    Span,
    Text,
    broken_rule,
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


class Local(Block):
    """The local platform's own settings."""

    state: Text
    """Folder of its state, from the working directory."""
    startup_timeout: Span
    """How long a replica may take to become ready."""
    max_restarts: CountOrZero
    """Restarts before a replica is left down."""

    @property
    def startup_timeout_seconds(self) -> float:
        """`startup_timeout` in seconds."""
        return self.startup_timeout.total_seconds()
