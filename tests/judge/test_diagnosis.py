"""Each kind of problem has its own cause and resolution; what serves has none."""

import pytest

from vllm_rollout.judge.diagnosis import diagnose
from vllm_rollout.model.deployment import Deployment, Replica
from vllm_rollout.model.symptoms import End, Event, NodeRoom, StartupProbe, Symptoms

HERE = Deployment("m", "staging", "system")

TRACEBACK = """INFO loading weights
Traceback (most recent call last):
  File "engine.py", line 12, in load
{}
"""


def replica(phase: str = "Pending", *, reason: str = "", ready: bool = False) -> Replica:
    return Replica(name="llama-abc", phase=phase, ready=ready, restarts=3, reason=reason)


def crashed(last_line: str) -> Symptoms:
    return Symptoms(
        replica=replica("Running", reason="CrashLoopBackOff"),
        node="n",
        waiting="CrashLoopBackOff",
        restarts=3,
        end=End(exit_code=1),
        log=TRACEBACK.format(last_line),
    )


def waiting(scarce: str, *rooms: NodeRoom) -> Symptoms:
    reported = f"0/2 nodes are available: 2 Insufficient {scarce}."
    return Symptoms(
        replica=replica(),
        scarce=scarce,
        requests={scarce: 4.0},
        rooms=rooms,
        events=(Event("FailedScheduling", reported),),
    )


def slow(threshold: int | None) -> Symptoms:
    probe = (
        None if threshold is None else StartupProbe(period_seconds=30, failure_threshold=threshold)
    )
    return Symptoms(
        replica=replica("Running"),
        node="n",
        startup_probe=probe,
        end=End(exit_code=137),
        events=(
            Event("Unhealthy", "Startup probe failed: connection refused"),
            Event("Killing", "Container vllm failed startup probe, will be restarted"),
        ),
    )


FORBIDDEN = 'Error creating: pods "x" is forbidden: '


@pytest.mark.parametrize(
    ("message", "cause", "resolution"),
    [
        (f"{FORBIDDEN}exceeded quota: q", "the namespace's resource quota", "ResourceQuota"),
        (f"{FORBIDDEN}failed quota: q: must specify limits.cpu", "failed quota: q", "State these"),
        (f"{FORBIDDEN}maximum memory usage per Container is 1Gi", "maximum memory", "LimitRange"),
        (f"{FORBIDDEN}violates PodSecurity", "violates PodSecurity", "securityContext"),
        (
            'Error creating: Internal error occurred: failed calling webhook "x.example": refused',
            'Internal error occurred: failed calling webhook "x.example"',
            "bring it back",
        ),
        ('admission webhook "y" denied the request: no', 'admission webhook "y"', "policy"),
        (f"{FORBIDDEN}error looking up service account", "error looking up", "serviceAccount"),
    ],
)
def test_pods_that_the_api_server_refuses_say_why(message, cause, resolution):
    (finding,) = diagnose([Symptoms(replica=None, events=(Event("FailedCreate", message),))], HERE)
    assert finding.cause.startswith(f"the API server refuses its pods: {cause}")
    assert resolution in finding.resolution


def test_a_gpu_shortage_says_how_many_are_short_and_on_which_nodes():
    (finding,) = diagnose(
        [
            waiting(
                "nvidia.com/gpu",
                NodeRoom(node="gpu-1", allocatable=8, requested=6),
                NodeRoom(node="gpu-2", allocatable=8, requested=0, refused="the taint other-team"),
            )
        ],
        HERE,
    )
    assert finding.cause == "it waits for 4 nvidia.com/gpu, 2 more than any node has free"
    assert "gpu-1: 2 of 8 nvidia.com/gpu free" in finding.shown_by
    assert "gpu-2: 8 of 8 nvidia.com/gpu free, and refuses it: the taint other-team" in (
        finding.shown_by
    )
    assert "add GPU nodes" in finding.resolution
    (finding,) = diagnose([waiting("nvidia.com/gpu")], HERE)
    assert "could not be read" in finding.shown_by[0]
    assert "`seesNodes: true`" in finding.shown_by[0]


@pytest.mark.parametrize(
    ("had", "policy", "wanted"),
    [(20, 40, "to 40 "), (40, 40, "to 80 "), (20, None, "to 40 "), (None, 20, "to 20 ")],
)
def test_a_start_up_probe_that_is_too_short_gets_the_value_to_set(had, policy, wanted):
    (finding,) = diagnose([slow(had)], HERE, failure_threshold=policy)
    assert "start-up probe's time" in finding.cause
    assert f"startupProbe.failureThreshold {wanted}" in finding.resolution
    if had == 20:
        assert "20 × 30 s (10 min)" in finding.cause


def test_a_crash_shows_the_last_lines_of_its_traceback():
    (finding,) = diagnose([crashed("ValueError: no such model")], HERE)
    assert finding.shown_by[0] == "last end: exit code 1, 3 restarts"
    assert finding.shown_by[-1] == "ValueError: no such model"
    assert finding.replica == "llama-abc"
    assert finding.resolution.endswith("vllm-rollout logs m -e staging")


def test_what_serves_has_no_finding_and_long_lines_are_cut():
    serving = Symptoms(replica=replica("Running", ready=True))
    (finding,) = diagnose([serving, crashed("x" * 10_000)], HERE)
    assert max(map(len, finding.shown_by)) <= 300
