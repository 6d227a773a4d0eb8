"""Composition of a revision, kept in the release's own values under `rollout`.

So the history of a release can be read from Helm alone, by any client, after any crash.
"""

import json
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from vllm_rollout.model.deployment import Build, Target, canonical_digest
from vllm_rollout.platform.kubernetes.surge_plan import Pods

_COUNT = TypeAdapter(int)


class Rollout(BaseModel):
    """`replicas` of `capacity` pods run `build`, made of `values`; the others run `previous`.

    `previous` is None when no pod runs anything else: the ramp is complete, or nothing served
    before it. `digest` is the build's, for the chart to mark pods with. `values_json` is text
    because Helm drops nulls from values and turns every number into a float.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    build: Build
    digest: str
    values_json: str
    replicas: int
    capacity: int
    previous: Build | None = None

    @property
    def values(self) -> dict[str, Any]:
        """The values `build` was made of, no environment's overlay among them."""
        values: dict[str, Any] = json.loads(self.values_json)
        return values


def next_rollout(target: Target, before: Rollout | None) -> Rollout:
    """Return the rollout with which a release that runs `before` reaches `target`.

    The pods outside the target keep the build that wholly served before: one that was itself half
    way is dropped. Where they already run the target's build, the whole capacity does.
    """
    stable = None if before is None else before.previous or before.build
    previous = stable if target.replicas < target.capacity and stable != target.build else None
    replicas = target.replicas
    if before is not None and stable == target.build and _whole(before):
        replicas = target.capacity
    return Rollout(
        build=target.build,
        digest=target.build.digest,
        values_json=json.dumps(dict(target.values)),
        replicas=replicas,
        capacity=target.capacity,
        previous=previous,
    )


def _whole(rollout: Rollout) -> bool:
    """Return True if all of the capacity is filled, by one build or by two."""
    return rollout.previous is not None or rollout.replicas >= rollout.capacity


OWN_VALUES = ("replicaCount", "canary", "rollout")
"""What the suite itself says of a revision, over all other values."""


def pods_of(rollout: Rollout) -> Pods:
    """The pods of each track once the rollout is in place."""
    if rollout.previous is None:
        return Pods(stable=rollout.replicas)
    return Pods(stable=rollout.capacity - rollout.replicas, canary=rollout.replicas)


def release_values(
    rollout: Rollout, pods: Pods, stable_pod_template: Mapping[str, Any] | None
) -> dict[str, Any]:
    """The `OWN_VALUES`: the pods of each track, and the rollout itself.

    `stable_pod_template` is needed where `rollout.previous` is set, and only there.
    """
    split = rollout.previous is not None
    return {
        "replicaCount": pods.stable,
        "canary": {
            "replicaCount": pods.canary,
            "handover": pods.handover,
            "stablePodTemplate": dict(stable_pod_template or {}) if split else {},
        },
        "rollout": rollout.model_dump(mode="json"),
    }


def read_pods(values: Mapping[str, Any], rollout: Rollout) -> Pods:
    """The pods of each track that a revision's values ask for; `rollout` is the revision's."""
    try:
        stable = _COUNT.validate_python(values["replicaCount"])
        canary = _COUNT.validate_python(values["canary"]["replicaCount"])
    except (KeyError, TypeError, ValidationError):
        return pods_of(rollout)
    return Pods(stable=stable, canary=canary)


def read_rollout(values: Mapping[str, Any], *, chart: str) -> Rollout:
    """Return the rollout that a revision's values describe.

    A revision made manually has none. Its build is then known by its values and its chart's
    name alone, and is equal to no build that was made from a folder: it cannot be promoted.
    """
    try:
        return Rollout.model_validate(values["rollout"])
    except (KeyError, ValidationError):
        return _foreign(values, chart)


def is_ours(rollout: Rollout) -> bool:
    """Return True if this suite made the revision, so that its build can be made again."""
    return rollout.build.chart_digest is not None


def _foreign(values: Mapping[str, Any], chart: str) -> Rollout:
    build = Build(values_digest=canonical_digest({"chart": chart, "values": values}))
    try:
        count = _COUNT.validate_python(values.get("replicaCount", 1))
    except ValidationError:
        count = 1
    return Rollout(
        build=build,
        digest=build.digest,
        values_json=json.dumps(dict(values)),
        replicas=count,
        capacity=count,
    )
