"""Diagnosis of a replica that does not serve: likely cause and resolution, from its symptoms.

The resolutions are the workflow's ("Common Issues and Resolutions") where it has one.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vllm_rollout.model.deployment import Deployment
from vllm_rollout.model.symptoms import Symptoms
from vllm_rollout.next_command import release_command
from vllm_rollout.policy import Policy

_LINES = 5
_LINE_LENGTH = 300
_IMAGE = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull")
_VOLUME = ("FailedMount", "FailedAttachVolume", "FailedMapVolume", "ProvisioningFailed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """The likely cause of one replica's failure, the lines that show it, and what to do."""

    replica: str
    cause: str
    shown_by: tuple[str, ...]
    resolution: str

    @property
    def text(self) -> str:
        """The lines that show it, and what to do."""
        return "\n".join([*self.shown_by, f"→ {self.resolution}"])


@dataclass(frozen=True, slots=True)
class _LogSign:
    """A log line that indicates why a process ended."""

    pattern: re.Pattern[str]
    cause: str
    resolution: str


_LOG_SIGNS = (
    _LogSign(
        re.compile(r"CUDA out of memory|OutOfMemoryError|No available memory for the cache"),
        "the GPU's memory does not hold the model and its cache",
        "Give the model more GPUs (gpu.count), or lower --max-model-len or "
        "--gpu-memory-utilization.",
    ),
    _LogSign(
        re.compile(r"gated repo|GatedRepoError|401 Client Error|403 Client Error", re.IGNORECASE),
        "the Hugging Face hub does not give the model to this token",
        "Ask for access on the model's page, and put a token that has it into the Secret that "
        "model.tokenSecret names.",
    ),
    _LogSign(
        re.compile(
            r"RepositoryNotFoundError|RevisionNotFoundError|does not appear to have a file"
            r"|is not a valid model identifier"
        ),
        "the model or its revision is not where the values say",
        "Check model.path and model.revision.",
    ),
    _LogSign(
        re.compile(r"ConnectionError|Max retries exceeded|Name or service not known"),
        "a host that the model is loaded from cannot be reached",
        "Check the network policy and the proxy, or load from a claim that holds the model.",
    ),
    _LogSign(
        re.compile(r"no CUDA-capable device|NVIDIA driver|CUDA driver version"),
        "the container finds no usable GPU",
        "Check gpu.count, the node's driver and the device plugin.",
    ),
    _LogSign(
        re.compile(r"unrecognized arguments|error: argument "),
        "vLLM does not know an argument it was given",
        "Compare extraArgs with the options of this vLLM version.",
    ),
)


def diagnose(
    symptoms: Sequence[Symptoms], deployment: Deployment, *, failure_threshold: int | None = None
) -> tuple[Finding, ...]:
    """One finding for each replica that does not serve, in the order given.

    `failure_threshold` is what the policy asks of the start-up probe of a model of this size; None
    where it does not know. A replica that serves has none.
    """
    return tuple(
        _finding(each, deployment, failure_threshold)
        for each in symptoms
        if each.replica is None or not each.replica.ready
    )


def findings_of(
    symptoms: Sequence[Symptoms], policy: Policy, deployment: Deployment
) -> tuple[Finding, ...]:
    """`diagnose` with what the policy asks of the start-up probe of a model of this size."""
    threshold = policy.startup_failure_threshold(policy.parameters(deployment.model))
    return diagnose(symptoms, deployment, failure_threshold=threshold)


def no_answer_remedy(path: str, *, status: int, error: str) -> str:
    """Return what to do where a request to `path` got no answer: `status` is 0 where none came.

    What is about the key (401, 403) or the address is not asked here: it has a remedy of its own.
    """
    said = error.lower()
    if status == 404 and "model" in said:
        return "Serve the model under its name: --served-model-name."
    if status in (404, 405, 501) or "does not support" in said or "not supported" in said:
        other = "chat" if path == "/v1/completions" else "completions"
        return (
            f"The server answers, and does not offer {path}, which was asked. If it offers "
            f"{other}, set `api: {other}` in the policy. Embedding and pooling models are not "
            "supported: they give no tokens."
        )
    if 400 <= status < 500:
        return f"The server refuses the request to {path}: its error says why."
    return "The engine hangs behind a healthy front: restart the replica and read its log."


def _finding(symptoms: Symptoms, deployment: Deployment, failure_threshold: int | None) -> Finding:
    rules: tuple[Callable[[Symptoms], Finding | None], ...] = (
        _quota,
        _unschedulable,
        _image,
        _volume,
        _out_of_memory,
        lambda each: _slow_start(each, failure_threshold),
        _evicted,
        lambda each: _crash(each, deployment),
        _unready,
    )
    return next((found for rule in rules if (found := rule(symptoms))), _unknown(symptoms))


def _quota(symptoms: Symptoms) -> Finding | None:
    events = _events(symptoms, "FailedCreate", "exceeded quota")
    if not events:
        return None
    return _found(
        symptoms,
        "the namespace's resource quota leaves no room",
        events,
        "Raise the ResourceQuota, scale something down in the namespace, or lower the requests.",
    )


def _unschedulable(symptoms: Symptoms) -> Finding | None:
    events = _events(symptoms, "FailedScheduling")
    if not events or symptoms.node:
        return None
    if not symptoms.scarce:
        return _found(
            symptoms,
            "no node may run it",
            events,
            "Compare nodeSelector, affinity and tolerations with the nodes' labels and taints.",
        )
    wanted = symptoms.requests.get(symptoms.scarce, 0.0)
    usable = [room for room in symptoms.rooms if not room.refused]
    short = wanted - max((room.free for room in usable), default=0.0)
    lines = [
        f"{room.node}: {room.free:g} of {room.allocatable:g} {symptoms.scarce} free"
        + (f", and refuses it: {room.refused}" if room.refused else "")
        for room in symptoms.rooms
    ]
    gpus = "gpu" in symptoms.scarce.lower()
    by = f", {short:g} more than any node has free" if symptoms.rooms else ""
    return _found(
        symptoms,
        f"it waits for {wanted:g} {symptoms.scarce}{by}",
        [*lines, *events],
        "Scale down workloads that are less critical and hold GPUs, add GPU nodes, or wait: "
        "kubectl describe nodes | grep -A 5 'Allocated resources'."
        if gpus
        else f"Add nodes, or lower the {symptoms.scarce} that it requests.",
    )


def _image(symptoms: Symptoms) -> Finding | None:
    if symptoms.replica is None or symptoms.replica.reason not in _IMAGE:
        return None
    return _found(
        symptoms,
        "its image cannot be pulled",
        [symptoms.replica.message, *_events(symptoms, "Failed")],
        "Check image.repository and image.digest, that the registry is reachable from the node, "
        "and image.pullSecrets.",
    )


def _volume(symptoms: Symptoms) -> Finding | None:
    events = [line for reason in _VOLUME for line in _events(symptoms, reason)]
    if not events:
        return None
    return _found(
        symptoms,
        "a volume cannot be mounted",
        events,
        "Check that the claim exists and is bound, and that it may be mounted by several nodes.",
    )


def _out_of_memory(symptoms: Symptoms) -> Finding | None:
    if symptoms.ended != "OOMKilled":
        return None
    return _found(
        symptoms,
        "it was killed at its memory limit",
        [f"last end: OOMKilled, exit code {symptoms.exit_code}", *_log(symptoms)],
        "Raise resources.limits.memory: loading takes about as much as the weights.",
    )


def _slow_start(symptoms: Symptoms, failure_threshold: int | None) -> Finding | None:
    events = _events(symptoms, "Unhealthy", "Startup probe failed")
    killed = _events(symptoms, "Killing", "failed startup probe")
    if not events and not killed:
        return None
    probe = symptoms.startup_probe
    if probe is None:
        allowed, wanted = "", failure_threshold
    else:
        allowed = (
            f" of {probe.failure_threshold} × {probe.period_seconds:g} s "
            f"({math.ceil(probe.seconds / 60)} min)"
        )
        # What the policy asks for is too little as well if the replica had that long already.
        enough = failure_threshold is not None and failure_threshold > probe.failure_threshold
        wanted = failure_threshold if enough else 2 * probe.failure_threshold
    value = f" to {wanted}" if wanted else ""
    return _found(
        symptoms,
        f"the model was not loaded within the start-up probe's time{allowed}",
        [*events, *killed, *_log(symptoms)],
        f"Set startupProbe.failureThreshold{value} in the values (7B-13B: 20, 70B: 40), if the "
        "log shows that loading goes on; else see what it waits for.",
    )


def _crash(symptoms: Symptoms, deployment: Deployment) -> Finding | None:
    crashed = symptoms.exit_code not in (None, 0)
    replica = symptoms.replica
    gone = replica and (replica.reason == "CrashLoopBackOff" or replica.phase == "Failed")
    if not crashed and not gone:
        return None
    code = "unknown" if symptoms.exit_code is None else symptoms.exit_code
    end = f"last end: exit code {code}, {replica.restarts if replica else 0} restarts"
    for sign in _LOG_SIGNS:
        if sign.pattern.search(symptoms.log):
            return _found(symptoms, sign.cause, [end, *_log(symptoms)], sign.resolution)
    return _found(
        symptoms,
        "its process ends soon after every start",
        [end, *_log(symptoms)],
        "The last lines of the log say why. More of it: " + release_command("logs", deployment),
    )


def _evicted(symptoms: Symptoms) -> Finding | None:
    if symptoms.replica is None or symptoms.replica.reason not in ("Evicted", "NodeLost"):
        return None
    return _found(
        symptoms,
        "its node gave it up",
        [symptoms.replica.message],
        "Look at the node: disk or memory pressure, or its connection.",
    )


def _unready(symptoms: Symptoms) -> Finding | None:
    events = _events(symptoms, "Unhealthy")
    if not events:
        return None
    return _found(
        symptoms,
        "it runs, and its health probe fails",
        [*events, *_log(symptoms)],
        "The engine may hang or be dead while the process lives: see the log, restart the pod.",
    )


def _unknown(symptoms: Symptoms) -> Finding:
    replica = symptoms.replica
    state = f"{replica.phase} {replica.reason} {replica.message}".strip() if replica else ""
    events = [f"{reason}: {message}" for reason, message in symptoms.events]
    return _found(
        symptoms,
        "it is not ready, and nothing says why",
        [state, *events, *_log(symptoms)],
        "It may still be starting. Else look at it with kubectl describe.",
    )


def _found(symptoms: Symptoms, cause: str, shown_by: Sequence[str], resolution: str) -> Finding:
    name = symptoms.replica.name if symptoms.replica else "a replica that could not be made"
    lines = dict.fromkeys(line[:_LINE_LENGTH] for line in shown_by if line.strip())
    return Finding(replica=name, cause=cause, shown_by=tuple(lines), resolution=resolution)


def _events(symptoms: Symptoms, reason: str, words: str = "") -> list[str]:
    """The newest event of that reason whose message holds `words`, as a line; or nothing."""
    events = [text for kind, text in symptoms.events if kind == reason and words in text]
    return [f"{reason}: {events[-1]}"] if events else []


def _log(symptoms: Symptoms) -> list[str]:
    """The last lines of the log, those of a traceback's end among them."""
    return [line for line in symptoms.log.splitlines() if line.strip()][-_LINES:]
