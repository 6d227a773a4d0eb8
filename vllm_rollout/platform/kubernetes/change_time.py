"""Time that a change of a release may take: from the pods that it replaces one after the other, and
from how long a pod may take to start.

A start-up probe ends a pod that has not started after initialDelaySeconds + failureThreshold ×
periodSeconds; until then it may still be a good one.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from vllm_rollout.model.units import AtLeast, format_duration
from vllm_rollout.platform.kubernetes.templates import Json, pod_templates, workloads_of

_BEFORE_THE_START = timedelta(minutes=3)
"""For a node to be found, for volumes and for the image, where a time limit follows the probe."""
_PROGRESS_DEADLINE_SECONDS = 600
_GRACE_SECONDS = 30
"""Defaults of the API server."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeTime:
    """`in_sequence` pods are replaced one after the other, each starts within `start_seconds` and
    the one in whose place it comes ends within `grace_seconds`."""

    in_sequence: int = 1
    start_seconds: float = 0.0
    grace_seconds: float = 0.0

    def limit(self, timeout: timedelta) -> timedelta:
        """The time limit of the change; `timeout` is that of one pod, or the least one."""
        if isinstance(timeout, AtLeast):
            pod = timedelta(seconds=self.start_seconds + self.grace_seconds) + _BEFORE_THE_START
            timeout = max(timeout, pod)
        return self.in_sequence * timeout


def change_time(objects: Sequence[Json], before: Sequence[Json]) -> ChangeTime:
    """The time to bring a release from the objects `before` to `objects`."""
    known = {(each["kind"], each["metadata"]["name"]): each for each in workloads_of(before)}
    changed = [
        (each, former)
        for each in workloads_of(objects)
        if (former := known.get((each["kind"], each["metadata"]["name"]))) is None
        or each.get("spec") != former.get("spec")
    ]
    return ChangeTime(
        in_sequence=max((_in_sequence(each, former) for each, former in changed), default=1),
        start_seconds=max((_start_seconds(each) for each, _ in changed), default=0.0),
        grace_seconds=max((_grace_seconds(each) for each, _ in changed), default=0.0),
    )


def too_short(objects: Sequence[Json], timeout: timedelta) -> list[str]:
    """Return which time limits are shorter than a pod may take to start, and what to set."""
    lines = []
    for each in workloads_of(objects):
        start = _start_seconds(each)
        what = f"{each['kind']} {each['metadata']['name']}"
        probe = f"a pod of {what} may take {_written(start)} to start by its probes"
        pod = start + _grace_seconds(each)
        if not isinstance(timeout, AtLeast) and timeout.total_seconds() < pod:
            room = _written(pod + _BEFORE_THE_START.total_seconds())
            lines.append(
                f"{probe}, and deploy_timeout gives it {format_duration(timeout)}: set "
                f"deploy_timeout to {room}, or to `at least {format_duration(timeout)}`"
            )
        if each["kind"] != "Deployment":
            continue
        deadline = each["spec"].get("progressDeadlineSeconds")
        if start >= (deadline or _PROGRESS_DEADLINE_SECONDS):
            given = f"is {deadline}" if deadline else f"is not set ({_PROGRESS_DEADLINE_SECONDS})"
            lines.append(
                f"{probe}, and progressDeadlineSeconds of {what} {given}: set it to "
                f"{math.ceil(start + _BEFORE_THE_START.total_seconds())}"
            )
    return lines


def _written(seconds: float) -> str:
    return format_duration(timedelta(seconds=seconds))


def _in_sequence(each: Json, former: Json | None) -> int:
    """Return how many pods come up one after the other, those that come up together as one."""
    spec = each.get("spec") or {}
    pods = int(_number(spec, "replicas", 1))
    kind = each["kind"]
    if kind == "StatefulSet":
        parallel = spec.get("podManagementPolicy") == "Parallel"
        if former is None or spec.get("template") == former["spec"].get("template"):
            more = pods - (int(_number(former["spec"], "replicas", 1)) if former else 0)
            return 1 if parallel else max(1, more)
        rolling = (spec.get("updateStrategy") or {}).get("rollingUpdate") or {}
        replaced = pods - int(_number(rolling, "partition", 0))
        return _batches(replaced, share(rolling.get("maxUnavailable") or 1, pods, up=True))
    if former is None or pod_templates(each) == pod_templates(former):
        return 1
    if kind == "Deployment":
        strategy = spec.get("strategy") or {}
        if strategy.get("type") == "Recreate":
            return 1
        rolling = strategy.get("rollingUpdate") or {}
        surge = share(rolling.get("maxSurge", "25%"), pods, up=True)
        return _batches(pods, surge + share(rolling.get("maxUnavailable", "25%"), pods, up=False))
    rolling = (spec.get("rolloutStrategy") or {}).get("rollingUpdateConfiguration") or {}
    surge = share(rolling.get("maxSurge", 0), pods, up=True)
    return _batches(pods, surge + share(rolling.get("maxUnavailable", 1), pods, up=False))


def _batches(pods: int, together: int) -> int:
    return max(1, math.ceil(pods / max(1, together)))


def share(value: Any, pods: int, *, up: bool) -> int:
    """A number, or a share of the pods (`25%`) as Kubernetes rounds it; of nothing 0."""
    if isinstance(value, str) and value.endswith("%"):
        part = pods * float(value[:-1]) / 100
        return math.ceil(part) if up else math.floor(part)
    return int(value or 0)


def _start_seconds(each: Json) -> float:
    """The longest that a pod of a workload may take to be ready, minReadySeconds included."""
    budgets = [
        sum(_budget(c) for c in template["spec"].get("initContainers") or ())
        + max(map(_budget, template["spec"]["containers"]), default=0.0)
        for template in pod_templates(each)
    ]
    return max(budgets, default=0.0) + _number(each.get("spec") or {}, "minReadySeconds", 0)


def _budget(container: Mapping[str, Any]) -> float:
    """Seconds after which the kubelet ends a container that has not started."""
    start, ready, alive = (
        container.get(f"{which}Probe") for which in ("startup", "readiness", "liveness")
    )
    delay = _number(ready or {}, "initialDelaySeconds", 0)
    allowed = start or alive or {}
    if not allowed:
        return delay
    failures = _number(allowed, "failureThreshold", 3) * _number(allowed, "periodSeconds", 10)
    return max(delay, _number(allowed, "initialDelaySeconds", 0) + failures)


def _grace_seconds(each: Json) -> float:
    return max(
        (
            _number(template["spec"], "terminationGracePeriodSeconds", _GRACE_SECONDS)
            for template in pod_templates(each)
        ),
        default=0.0,
    )


def _number(mapping: Mapping[str, Any], key: str, default: float) -> float:
    """The number there; the default where there is none, or a template has left it empty."""
    value = mapping.get(key)
    return default if value is None else float(value)
