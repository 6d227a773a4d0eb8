"""A pod, its events and its log, as a cluster shows them, have one cause: the present one."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from vllm_rollout.judge.diagnosis import Finding, diagnose
from vllm_rollout.model.deployment import Deployment
from vllm_rollout.model.symptoms import Event, Symptoms
from vllm_rollout.platform.kubernetes.events import ObjectEvent
from vllm_rollout.platform.kubernetes.nodes import Nodes
from vllm_rollout.platform.kubernetes.pod_symptoms import symptoms_of_pod
from vllm_rollout.platform.kubernetes.pods import parse_pod

HERE = Deployment("m", "staging", "system")
NOW = datetime(2026, 11, 29, 12, 0, tzinfo=UTC)
NAME, UID = "m-staging-7c9f-abcde", "0f6b8a52"
Json = dict[str, Any]
Events = Sequence[tuple[str, str, float]]


def at(seconds_ago: float) -> str:
    return f"{NOW - timedelta(seconds=seconds_ago):%Y-%m-%dT%H:%M:%SZ}"


def waits(reason: str, message: str = "", **more: Any) -> Json:
    return {"state": {"waiting": {"reason": reason, "message": message}}, **more}


def runs(seconds: float, *, started: bool = False, **more: Any) -> Json:
    return {"state": {"running": {"startedAt": at(seconds)}}, "started": started, **more}


def ended(
    code: int, reason: str = "Error", *, ago: float = 30, ran: float = 90, **more: Any
) -> Json:
    times = {"startedAt": at(ago + ran), "finishedAt": at(ago)}
    return {"terminated": {"exitCode": code, "reason": reason, **times, **more}}


def loops(code: int, reason: str = "Error", **more: Any) -> Json:
    """A container in CrashLoopBackOff whose process ended so."""
    last = ended(code, reason, **more)
    return waits("CrashLoopBackOff", "back-off 5m0s", lastState=last, restartCount=4)


def restarted(code: int, reason: str = "Error", *, loading: float = 20, **more: Any) -> Json:
    """A container that is loading again after its process ended so."""
    return runs(loading, lastState=ended(code, reason, **more), restartCount=1)


def pod(server: Json | None, *others: Json, **changes: Any) -> Json:
    statuses = [{"name": "vllm", **server}] if server is not None else []
    status: Json = {
        "phase": "Running",
        "conditions": [
            {"type": "PodScheduled", "status": "True"},
            {"type": "Ready", "status": "False", "reason": "ContainersNotReady"},
        ],
        "containerStatuses": sorted([*statuses, *others], key=lambda each: str(each["name"])),
        **changes.pop("status", {}),
    }
    probe = {"periodSeconds": 30, "failureThreshold": 20}
    vllm = {"name": "vllm", "image": "vllm/vllm-openai", "startupProbe": probe}
    return {
        "metadata": {"name": NAME, "uid": UID, **changes.pop("metadata", {})},
        "spec": {
            "nodeName": "gpu-1",
            "containers": [*({"name": each["name"]} for each in others), vllm],
            **changes.pop("spec", {}),
        },
        "status": status,
    }


def nodes(*conditions: Json) -> Nodes:
    found = Nodes(api=None)  # type: ignore[arg-type]
    status = {"conditions": list(conditions), "allocatable": {}}
    node = {"metadata": {"name": "gpu-1"}, "spec": {}, "status": status}
    vars(found).update(nodes=[node], pods=[])
    return found


def symptoms(
    document: Json,
    events: Events = (),
    *,
    log: str = "",
    previous: str = "",
    node: Nodes | None = None,
    job: str = "",
    uid: str = UID,
) -> Symptoms:
    """What is known of the pod; `uid` is of the one that the events are about."""
    return symptoms_of_pod(
        parse_pod(document),
        events=[ObjectEvent("Pod", NAME, uid, Event(*each)) for each in events],
        nodes=node or nodes(),
        log=lambda _pod, container, before: f"{previous if before else log}",
        now=NOW,
        job=job,
    )


def cause(*arguments: Any, **more: Any) -> Finding:
    (finding,) = diagnose([symptoms(*arguments, **more)], HERE)
    return finding


LOADING = "INFO Loading safetensors checkpoint shards: 40% Completed\n"
STARTUP = ("Unhealthy", "Startup probe failed: connection refused", 20.0)
READINESS = ("Unhealthy", "Readiness probe failed: HTTP probe failed with statuscode: 503", 5.0)
MOUNT = ("FailedMount", "failed to sync configmap cache: timed out", 300.0)
ATTACH = ("FailedAttachVolume", "Multi-Attach error for volume: already used by pod(s) x", 9.0)
KILLED = ("Killing", "Container vllm failed startup probe, will be restarted", 35.0)
LIVENESS = ("Killing", "Container vllm failed liveness probe, will be restarted", 35.0)
UNBOUND = "0/1 nodes: pod has unbound immediate PersistentVolumeClaims."
ENDS = "ends soon after every start"


def pending(message: str) -> Json:
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
    status = {"phase": "Pending", "conditions": [{**condition, "message": message}]}
    return pod(None, status=status, spec={"nodeName": ""})


def failed(reason: str, message: str) -> Json:
    return pod(None, status={"phase": "Failed", "reason": reason, "message": message})


# What is so now | what has happened | what is logged | the cause | a word of the remedy
FACTS: tuple[tuple[Json, Events, str, str, str], ...] = (
    # Loading is no failure, and a failed start-up probe is part of it.
    (runs(40), [], LOADING, "it is still loading, 40 s of 10 min", "deploy_timeout"),
    (runs(540), [STARTUP, MOUNT], LOADING, "still loading, 9 min of 10 min", "Wait"),
    # What ended it stands before what is over, be it older or newer.
    (loops(1), [STARTUP, MOUNT, KILLED], "ValueError: x\n", ENDS, "logs"),
    (restarted(1), [STARTUP], "torch.OutOfMemoryError: CUDA out of memory", "GPU's memory", "gpu"),
    (loops(137, "OOMKilled"), [STARTUP, KILLED], "", "killed at its memory limit", "limits.memory"),
    (restarted(137, ran=600), [STARTUP, KILLED], LOADING, "20 × 30 s (10 min)", "to 40 "),
    (restarted(0, "Completed", ran=600), [KILLED], LOADING, "start-up probe's time", "to 40 "),
    (restarted(143, ran=601), [], LOADING, "start-up probe's time", "to 40 "),
    (loops(137), [("Killing", KILLED[1], 900.0)], "", "something killed it", "dmesg"),
    (loops(137), [LIVENESS], "", "liveness probe ended it", "livenessProbe"),
    (loops(1, ran=7300), [], "", "its process ended after 2 h", "logs"),
    (runs(900, started=True), [READINESS], "ERROR dead", "its health probe fails", "restart"),
    (
        runs(900, started=True, lastState=ended(1, ago=905), restartCount=1),
        [READINESS],
        "",
        "its health probe fails",
        "restart",
    ),
    # Before there is a process.
    (waits("ContainerCreating"), [MOUNT], "", "a volume cannot be mounted", "claim"),
    (waits("ContainerCreating"), [ATTACH], "", "another pod on another node", "ReadWriteMany"),
    (
        waits("ContainerCreating"),
        [("FailedMount", 'secret "hf" not found', 3.0)],
        "",
        "Secret or ConfigMap",
        "Create",
    ),
    (
        waits("ContainerCreating"),
        [MOUNT, ("Pulling", 'Pulling image "vllm"', 200.0)],
        "",
        "its image is being pulled, for 3 min",
        "mirror",
    ),
    (
        waits("ContainerCreating"),
        [("FailedCreatePodSandBox", "cni plugin not initialized", 3.0)],
        "",
        "network",
        "CNI",
    ),
    (waits("ImagePullBackOff", "rpc: 401 Unauthorized"), [MOUNT], "", "credentials", "pullSecrets"),
    (waits("ErrImagePull", "manifest unknown: not found"), [], "", "does not have it", "image.tag"),
    (
        waits("ImagePullBackOff", "Back-off pulling"),
        [("Failed", "429 Too Many Requests - toomanyrequests: pull rate limit", 9.0)],
        "",
        "limits the number of pulls",
        "mirror",
    ),
    (waits("ErrImagePull", "no match for platform in manifest"), [], "", "architecture", "arch"),
    (
        waits("CreateContainerConfigError", "couldn't find key token in Secret system/hf"),
        [],
        "",
        "a key of it, is not there",
        "Create",
    ),
    (
        waits("RunContainerError", 'exec: "vllm": executable file not found in $PATH'),
        [],
        "",
        "the image does not have the command",
        "command",
    ),
    (
        waits("RunContainerError", "nvidia-container-cli: unsatisfied condition: cuda>=12.8"),
        [],
        "",
        "driver does not fit",
        "driver",
    ),
    (
        loops(128, "StartError", message="exec /usr/bin/vllm: exec format error"),
        [],
        "",
        "another processor architecture",
        "architecture",
    ),
    (loops(135), [], "", "/dev/shm", "sharedMemory"),
    (loops(0, "Completed"), [], "", "ends without an error", "command"),
)

LOGS = (
    ("vllm serve: error: unrecognized arguments: --fast", "an argument", "extraArgs"),
    ("error: argument --dtype: invalid choice: 'x'", "an argument", "extraArgs"),
    (
        "ValueError: To serve at least one request with the model's max seq len (131072), 16 GiB",
        "does not hold one request",
        "--max-model-len",
    ),
    (
        "User-specified max_model_len (9999) is greater than the derived max_model_len (4096)",
        "more than the model allows",
        "config.json",
    ),
    (
        "ValueError: Free memory on device (1/79 GiB) is less than desired GPU memory utilization",
        "another process",
        "gpu-memory-utilization",
    ),
    ("ValueError: No available memory for the cache blocks.", "the GPU's memory", "gpu.count"),
    ("RuntimeError: No CUDA GPUs: NVIDIA driver missing", "usable GPU", "driver"),
    ("RuntimeError: Failed to infer device type", "usable GPU", "device plugin"),
    ("RuntimeError: The NVIDIA driver on your system is too old", "driver does not fit", "Update"),
    (
        "GatedRepoError: 403 Client Error. Cannot access gated repo for url x",
        "does not give the model to this token",
        "tokenSecret",
    ),
    (
        "GatedRepoError: 401 Client Error. You must have access and be authenticated to access it.",
        "to this token, which is missing",
        "tokenSecret",
    ),
    (
        "RepositoryNotFoundError: 401 Client Error. Repository Not Found; a private or gated repo?",
        "not where the values say",
        "model.path",
    ),
    ("LocalEntryNotFoundError: couldn't connect to 'https://x'", "cannot be reached", "network"),
    (
        "ValueError: Model architectures ['NewForCausalLM'] are not supported for now.",
        "does not support the model's architecture",
        "image",
    ),
    (
        "ValueError: Please set the option `trust_remote_code=True` to remove this error.",
        "code of its own",
        "--trust-remote-code",
    ),
    ("OSError: [Errno 28] No space left on device: '/psm_1a2b3c'", "/dev/shm", "sharedMemory"),
    ("OSError: [Errno 28] No space left on device: '/cache/x'", "a volume is full", "sizeLimit"),
    ("PermissionError: [Errno 13] Permission denied: '/cache'", "may not read", "fsGroup"),
    ("SafetensorError: Error while deserializing header", "damaged or incomplete", "Delete"),
    ("ValidationError: 1 validation error for ModelConfig", "its configuration", "extraArgs"),
    ("OSError: [Errno 98] Address already in use", "its port is taken", "port"),
)


@pytest.mark.parametrize(("server", "events", "log", "says", "remedy"), FACTS)
def test_the_present_state_is_the_cause_and_not_past_events(
    server: Json, events: Events, log: str, says: str, remedy: str
) -> None:
    found = cause(pod(server), events, log=log, previous=log)

    assert says in found.cause
    assert remedy in found.resolution


@pytest.mark.parametrize(("line", "says", "remedy"), LOGS)
def test_the_line_of_the_log_that_shows_the_cause_is_found_and_shown(
    line: str, says: str, remedy: str
) -> None:
    # vLLM's server adds a long traceback of its own, and prints its configuration before.
    before = "INFO Initializing engine: max_seq_len=4096, trust_remote_code=False, dtype=bfloat16\n"
    after = "  File api_server.py, line 1\n" * 60
    last = "RuntimeError: Engine core initialization failed. See root cause above.\n"
    found = cause(pod(loops(1)), log="", previous=f"{before}{line}\n{after}{last}")

    assert ENDS in found.cause
    assert says in found.cause
    assert remedy in found.resolution
    assert any(line.splitlines()[0][:40] in shown for shown in found.shown_by)
    assert found.shown_by[-1] == last.strip()


@pytest.mark.parametrize(
    ("document", "says", "remedy"),
    [
        (pending("2 node(s) had untolerated taint {a: b}"), "no node may run it", "tolerations"),
        (pending("0/2 nodes: didn't match Pod's node affinity"), "no node may", "affinity"),
        (pending(f"{UNBOUND} 1 Insufficient nvidia.com/gpu."), "its claim is not bound", "pvc"),
        (pending("0/1 nodes: 1 Insufficient memory."), "it waits for 0 memory", "lower"),
        (failed("Evicted", "low on resource: memory."), "its node gave it up", "pressure"),
        (failed("Evicted", "EmptyDir exceeds the limit"), "wrote more", "sizeLimit"),
        (failed("UnexpectedAdmissionError", "unhealthy devices"), "could not give", "plugin"),
        (failed("DeadlineExceeded", "Pod was active longer"), "activeDeadline", "goes on"),
    ],
)
def test_a_pod_without_a_process_says_itself_why(document: Json, says: str, remedy: str) -> None:
    found = cause(document)

    assert says in found.cause
    assert remedy in found.resolution


def test_a_node_that_is_lost_stands_before_what_its_pods_report() -> None:
    lost = nodes({"type": "Ready", "status": "Unknown", "message": "Kubelet stopped posting"})

    found = cause(pod(loops(1)), node=lost)

    assert "its node gpu-1 is not ready" in found.cause
    assert "Kubelet stopped posting" in found.shown_by[0]


def test_a_pod_that_should_have_been_gone_is_named() -> None:
    found = cause(pod(runs(900, started=True), metadata={"deletionTimestamp": at(600)}))

    assert "should have been gone for 10 min" in found.cause
    assert "gpu-1" in found.resolution


def test_events_of_others_and_of_an_hour_ago_are_no_cause() -> None:
    old = ("FailedMount", "no claim", 4000.0)
    assert not symptoms(pod(waits("ContainerCreating")), [old]).events
    fresh = ("FailedMount", "no claim", 0.0)
    assert symptoms(pod(waits("ContainerCreating")), [fresh]).events
    assert not symptoms(pod(waits("ContainerCreating")), [fresh], uid="of-the-pod-before").events


SIDECAR = {"name": "istio-proxy", "ready": True, **runs(900, started=True)}


@pytest.mark.parametrize(
    ("document", "container", "says"),
    [
        (pod(loops(1), SIDECAR), "vllm", "its process ends"),
        (
            pod(runs(900, started=True, ready=True), {"name": "istio-proxy", **loops(1)}),
            "istio-proxy",
            "its sidecar istio-proxy: its process ends",
        ),
        (pod(runs(60), {**SIDECAR, "ready": False}), "vllm", "it is still loading"),
        (
            pod(
                waits("PodInitializing"),
                status={"initContainerStatuses": [{"name": "fetch", **loops(1)}]},
                spec={"initContainers": [{"name": "fetch"}]},
            ),
            "fetch",
            "its init container fetch: its process ends",
        ),
        (
            pod(
                loops(1),
                status={"initContainerStatuses": [{"name": "proxy", "started": True, **SIDECAR}]},
                spec={"initContainers": [{"name": "istio-proxy", "restartPolicy": "Always"}]},
            ),
            "vllm",
            "its process ends",
        ),
        (
            pod(
                runs(900, started=True, ready=True),
                status={"initContainerStatuses": [{"name": "proxy", **loops(1)}]},
                spec={"initContainers": [{"name": "proxy", "restartPolicy": "Always"}]},
            ),
            "proxy",
            "its sidecar proxy: its process ends",
        ),
    ],
)
def test_the_container_that_keeps_a_pod_from_being_ready_is_named(
    document: Json, container: str, says: str
) -> None:
    asked = []
    found = symptoms_of_pod(
        parse_pod(document),
        events=[],
        nodes=nodes(),
        log=lambda _pod, name, _before: asked.append(name) or "",  # type: ignore[func-returns-value]
        now=NOW,
    )

    assert set(asked) == {container}
    assert diagnose([found], HERE)[0].cause.startswith(says)


def test_a_job_that_fails_or_hangs_says_so_by_its_own_log() -> None:
    one_off = {"restartPolicy": "Never"}
    log = "HTTPError: 403 Client Error: Forbidden\n"
    broken = cause(
        pod({"state": ended(1)}, spec=one_off, status={"phase": "Failed"}),
        log=log,
        job="hook Job x",
    )
    assert broken.replica == f"hook Job x, pod {NAME}"
    assert broken.cause.startswith("it failed: the Hugging Face hub")
    assert log.strip() in broken.shown_by

    hangs = cause(pod(runs(900, ready=True), spec=one_off), log="10% of 140 GB", job="hook Job x")
    assert "has run for 15 min" in hangs.cause
    assert "`deploy_timeout`" in hangs.cause
    assert hangs.shown_by == ("10% of 140 GB",)

    done = {"state": ended(0, "Completed")}
    beside = cause(pod(done, SIDECAR, spec=one_off), job="hook Job x")
    assert "its sidecar istio-proxy" in beside.cause
    assert "does not end by itself" in beside.cause


def test_secrets_and_terminal_codes_of_containers_are_not_shown() -> None:
    message = "\x1b[31mOSError: bad token=hf_abcdefghijklmnop\x1b[0m"
    document = pod(loops(1, message=message))

    (finding,) = diagnose([symptoms(document, previous="\x1b[2J" + "x" * 5000)], HERE)

    text = f"{finding.text} {finding.cause}"
    assert "hf_abc" not in text
    assert "\x1b" not in text
    assert max(map(len, finding.shown_by)) <= 300
