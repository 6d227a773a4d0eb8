"""Each kind of problem has its own cause and resolution; what serves has none."""

import pytest

from vllm_rollout.judge.diagnosis import diagnose
from vllm_rollout.model.deployment import Deployment, Replica
from vllm_rollout.model.symptoms import NodeRoom, StartupProbe, Symptoms

HERE = Deployment("m", "staging", "system")

TRACEBACK = """INFO loading weights
Traceback (most recent call last):
  File "engine.py", line 12, in load
{}
"""


def replica(phase: str = "Pending", *, reason: str = "", ready: bool = False) -> Replica:
    return Replica(name="llama-abc", phase=phase, ready=ready, restarts=3, reason=reason)


def crashed(last_line: str) -> Symptoms:
    looping = replica("Running", reason="CrashLoopBackOff")
    return Symptoms(replica=looping, node="n", exit_code=1, log=TRACEBACK.format(last_line))


def waiting(scarce: str, *rooms: NodeRoom) -> Symptoms:
    told = f"0/2 nodes are available: 2 Insufficient {scarce}."
    return Symptoms(
        replica=replica(),
        scarce=scarce,
        requests={scarce: 4.0},
        rooms=rooms,
        events=(("FailedScheduling", told),),
    )


def slow(threshold: int | None) -> Symptoms:
    probe = (
        None if threshold is None else StartupProbe(period_seconds=30, failure_threshold=threshold)
    )
    return Symptoms(
        replica=replica("Running"),
        node="n",
        startup_probe=probe,
        exit_code=137,
        events=(
            ("Unhealthy", "Startup probe failed: connection refused"),
            ("Killing", "Container vllm failed startup probe, will be restarted"),
        ),
    )


@pytest.mark.parametrize(
    ("symptoms", "cause", "resolution"),
    [
        (waiting("memory"), "it waits for 4 memory", "lower the memory that it requests"),
        (
            Symptoms(replica=replica(), events=(("FailedScheduling", "0/2 nodes: taint"),)),
            "no node may run it",
            "tolerations",
        ),
        (
            Symptoms(replica=replica(reason="ImagePullBackOff"), node="n"),
            "its image cannot be pulled",
            "image.digest",
        ),
        (
            Symptoms(replica=replica(), node="n", events=(("FailedMount", "no claim"),)),
            "a volume cannot be mounted",
            "claim",
        ),
        (
            Symptoms(replica=replica("Running"), node="n", ended="OOMKilled", exit_code=137),
            "killed at its memory limit",
            "resources.limits.memory",
        ),
        (crashed("torch.OutOfMemoryError: CUDA out of memory."), "GPU's memory", "gpu.count"),
        (crashed("OSError: You are trying to access a gated repo."), "this token", "tokenSecret"),
        (crashed("OSError: meta/x is not a valid model identifier"), "not where", "model.path"),
        (crashed("RuntimeError: No CUDA GPUs: NVIDIA driver missing"), "usable GPU", "driver"),
        (crashed("vllm: error: unrecognized arguments: --fast"), "an argument", "extraArgs"),
        (crashed("ValueError: something else"), "ends soon after every start", "logs"),
        (
            Symptoms(
                replica=replica("Running"),
                node="n",
                events=(("Unhealthy", "Readiness probe failed: 503"),),
            ),
            "its health probe fails",
            "engine",
        ),
        (
            Symptoms(replica=replica("Failed", reason="Evicted"), node="n"),
            "its node gave it up",
            "pressure",
        ),
        (
            Symptoms(replica=None, events=(("FailedCreate", 'pods "x" exceeded quota: q'),)),
            "resource quota leaves no room",
            "ResourceQuota",
        ),
        (Symptoms(replica=replica("Running"), node="n"), "nothing says why", "describe"),
    ],
)
def test_each_trouble_has_its_cause_and_resolution(symptoms, cause, resolution):
    (finding,) = diagnose([symptoms], HERE)
    assert cause in finding.cause
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
