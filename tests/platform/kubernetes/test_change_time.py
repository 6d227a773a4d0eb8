"""The time of a change: from its pods in sequence, and from how long one may take to start."""

from datetime import timedelta
from typing import Any

import pytest

from vllm_rollout.model.units import AtLeast
from vllm_rollout.platform.kubernetes.change_time import change_time, too_short

MINUTE = timedelta(minutes=1)
PROBE = {"periodSeconds": 30, "failureThreshold": 40}


def workload(
    version: str, replicas: int | None = 4, kind: str = "Deployment", **spec: Any
) -> dict[str, Any]:
    container = {"name": "vllm", "args": [version], "startupProbe": spec.pop("probe", PROBE)}
    pod = {"containers": [container], "terminationGracePeriodSeconds": 120}
    template = {"metadata": {"labels": {"app": "m"}}, "spec": pod}
    body: dict[str, Any] = {"replicas": replicas, "template": template, **spec}
    if kind == "Group":
        body = {"replicas": replicas, "leaderWorkerTemplate": {"workerTemplate": template}, **spec}
    version = "example.test/v1" if kind == "Group" else "apps/v1"
    return {"kind": kind, "apiVersion": version, "metadata": {"name": "m"}, "spec": body}


def rolling(surge: Any, unavailable: Any) -> dict[str, Any]:
    return {"rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}}


ONE = rolling(1, 0)


@pytest.mark.parametrize(
    ("before", "after", "in_sequence"),
    [
        pytest.param([], workload("a", strategy=ONE), 1, id="all at once, where none was"),
        pytest.param([workload("a")], workload("b", strategy=ONE), 4, id="one by one"),
        pytest.param([workload("a")], workload("b", strategy=rolling(0, 3)), 2, id="three of four"),
        pytest.param([workload("a")], workload("b", strategy=rolling("50%", "30%")), 2, id="50%"),
        pytest.param([workload("a")], workload("b"), 2, id="the API server's own 25% and 25%"),
        pytest.param([workload("a", 2)], workload("a", strategy=ONE), 1, id="more of the same"),
        pytest.param(
            [workload("a")], workload("b", strategy={"type": "Recreate"}), 1, id="recreated"
        ),
        pytest.param(
            [workload("a", kind="StatefulSet")], workload("b", kind="StatefulSet"), 4, id="in order"
        ),
        pytest.param([], workload("a", kind="StatefulSet"), 4, id="first in order"),
        pytest.param([], workload("a", replicas=None, minReadySeconds=None), 1, id="left empty"),
        pytest.param(
            [], workload("a", kind="StatefulSet", podManagementPolicy="Parallel"), 1, id="parallel"
        ),
        pytest.param(
            [workload("a", kind="StatefulSet")],
            workload("b", kind="StatefulSet", updateStrategy={"rollingUpdate": {"partition": 3}}),
            1,
            id="a partition",
        ),
        pytest.param([workload("a", kind="Group")], workload("b", kind="Group"), 4, id="groups"),
    ],
)
def test_pods_that_come_one_after_the_other_have_the_time_each(
    before: list[dict[str, Any]], after: dict[str, Any], in_sequence: int
) -> None:
    time = change_time([after], before)
    assert time.in_sequence == in_sequence
    assert time.limit(MINUTE) == in_sequence * MINUTE
    # 20 min to load, 2 min for the one before to end, 3 min for node, volumes and image.
    assert time.limit(AtLeast(minutes=15)) == in_sequence * timedelta(minutes=25)
    assert time.limit(AtLeast(minutes=40)) == in_sequence * timedelta(minutes=40)


def test_limits_shorter_than_the_probes_are_told_with_what_to_set() -> None:
    own = workload("a")
    told = "a pod of Deployment m may take 20m to start by its probes, and "
    assert too_short([own], timedelta(minutes=15)) == [
        f"{told}deploy_timeout gives it 15m: set deploy_timeout to 25m, or to `at least 15m`",
        f"{told}progressDeadlineSeconds of Deployment m is not set (600): set it to 1380",
    ]
    assert too_short([workload("a", progressDeadlineSeconds=1500)], AtLeast(minutes=15)) == []
    without = workload("a", probe={"periodSeconds": 10, "failureThreshold": 12})
    assert too_short([without], timedelta(minutes=5)) == []

    # Without a start-up probe the liveness probe ends what takes too long.
    container = without["spec"]["template"]["spec"]["containers"][0]
    del container["startupProbe"]
    container["livenessProbe"] = {"initialDelaySeconds": 900}
    assert "may take 15m30s to start" in too_short([without], timedelta(minutes=5))[0]
