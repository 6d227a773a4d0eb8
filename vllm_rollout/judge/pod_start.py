"""Reasons why a pod's containers do not run: refused, not scheduled, no image, volume or node."""

import re
from typing import NamedTuple

from vllm_rollout.judge.log_signs import sign_in
from vllm_rollout.judge.message_signs import PLACES, PULLS, REFUSALS, VOLUMES
from vllm_rollout.model.symptoms import Event, Symptoms
from vllm_rollout.next_command import next_command

STARTING = ("", "ContainerCreating", "PodInitializing")
_REFUSAL_PREFIX = r".*?(?:is forbidden: |Error creating: |failed error: )"
_IMAGE = (
    *("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"),
    *("ImageInspectError", "RegistryUnavailable", "SignatureValidationFailed"),
)
_VOLUME = ("FailedMount", "FailedAttachVolume", "FailedMapVolume", "ProvisioningFailed")
_SANDBOX = ("FailedCreatePodSandBox", "NetworkNotReady")
_PROGRESS = ("Pulling", "Pulled", "Created", "Started")
"""Events after which volumes are mounted and the pod has its network."""
_NOT_CONFIGURED = ("CreateContainerConfigError", "CreateContainerError", "RunContainerError")
_GIVEN_UP = ("Evicted", "NodeLost", "Terminated", "NodeShutdown", "Shutdown", "Preempting")
_OVERDUE_SECONDS = 30.0


class Reason(NamedTuple):
    """A cause, the lines that show it, and what to do."""

    cause: str
    shown_by: list[str]
    resolution: str


def refused(symptoms: Symptoms) -> Reason | None:
    """Pods that the API server does not let be made."""
    event = next((e for e in reversed(symptoms.events) if e.reason == "FailedCreate"), None)
    if event is None or symptoms.replica is not None:
        return None
    own_words = re.sub(_REFUSAL_PREFIX, "", event.message, count=2)
    sign = sign_in(event.message, table=REFUSALS)
    return Reason(
        f"the API server refuses its pods: {(sign and sign.cause) or own_words}",
        [line_of(event)],
        sign.resolution if sign else "Satisfy the policy that is named, or have it changed.",
    )


def overdue(symptoms: Symptoms) -> Reason | None:
    """A pod that should have been gone for some time."""
    seconds = symptoms.overdue_seconds
    if seconds is None or seconds < _OVERDUE_SECONDS:
        return None
    return Reason(
        f"it is being deleted, and should have been gone for {duration(seconds)}",
        [symptoms.node_problem, *map(line_of, symptoms.events[-2:])],
        f"Look at its node {symptoms.node}, its volumes and its finalizers; it holds its GPUs "
        "until it is gone.",
    )


def given_up(symptoms: Symptoms) -> Reason | None:
    """A pod that was evicted, refused by its kubelet, preempted or out of time."""
    replica = symptoms.replica
    late = [e for e in symptoms.events if e.reason == "DeadlineExceeded"]
    if late or (replica and replica.reason == "DeadlineExceeded"):
        return Reason(
            "it ran out of its activeDeadlineSeconds",
            [replica.message if replica else "", *map(line_of, late[-1:])],
            "Raise activeDeadlineSeconds if its log shows that it goes on; else see what it "
            "waits for.",
        )
    if replica is None or replica.phase != "Failed" or not replica.reason:
        return None
    lines = [f"{replica.reason}: {replica.message}"]
    if replica.reason == "UnexpectedAdmissionError" or replica.reason.startswith("OutOf"):
        return Reason(
            "its node could not give it what it asks for",
            lines,
            "Look at the node's device plugin and devices (kubectl describe node).",
        )
    if replica.reason in _GIVEN_UP or replica.reason.startswith("Node"):
        if re.search(r"exceed(?:s|ed) .*(?:limit|storage)|local ephemeral", replica.message):
            return Reason(
                "its node gave it up: it wrote more to its disk than it may",
                lines,
                "Raise modelCache.sizeLimit or the limit of ephemeral-storage, or load from a "
                "claim.",
            )
        return Reason(
            "its node gave it up",
            lines,
            "Look at the node: disk or memory pressure, or its connection.",
        )
    return None


def node_lost(symptoms: Symptoms) -> Reason | None:
    """A node that is not ready: what its pods report is old."""
    if not symptoms.node_problem:
        return None
    return Reason(
        f"its node {symptoms.node} is not ready",
        [symptoms.node_problem],
        f"Look at the node: {next_command('kubectl', 'describe', 'node', symptoms.node)}. Its pods "
        "are replaced some minutes after it is lost.",
    )


def unscheduled(symptoms: Symptoms) -> Reason | None:
    """A pod that no node may or can run."""
    events = newest(symptoms, "FailedScheduling")
    if symptoms.node or not (symptoms.unscheduled or events):
        return None
    why = symptoms.unscheduled or events[0].message
    lines = [f"FailedScheduling: {why}"]
    for event in newest(symptoms, "Preempted"):
        lines.insert(0, line_of(event))
    sign = sign_in(why, table=PLACES)
    if symptoms.scarce and sign is not PLACES[0]:
        return _scarce(symptoms, lines)
    if sign:
        return Reason(sign.cause, lines, sign.resolution)
    return Reason(
        "no node may run it",
        lines,
        "Compare nodeSelector, affinity and tolerations with the nodes' labels and taints.",
    )


def _scarce(symptoms: Symptoms, events: list[str]) -> Reason:
    wanted = symptoms.requests.get(symptoms.scarce, 0.0)
    usable = [room for room in symptoms.rooms if not room.refused]
    short = wanted - max((room.free for room in usable), default=0.0)
    lines = [
        f"{room.node}: {room.free:g} of {room.allocatable:g} {symptoms.scarce} free"
        + (f", and refuses it: {room.refused}" if room.refused else "")
        for room in symptoms.rooms
    ]
    if not lines:
        unread = f"how much {symptoms.scarce} is free on which node could not be read: "
        lines = [f"{unread}the chart rollout-roles allows it with `seesNodes: true`"]
    gpus = "gpu" in symptoms.scarce.lower()
    by = f", {short:g} more than any node has free" if symptoms.rooms else ""
    return Reason(
        f"it waits for {wanted:g} {symptoms.scarce}{by}",
        [*lines, *events],
        "Scale down workloads that are less critical and hold GPUs, add GPU nodes, or wait: "
        "kubectl describe nodes | grep -A 5 'Allocated resources'."
        if gpus
        else f"Add nodes, or lower the {symptoms.scarce} that it requests.",
    )


def image(symptoms: Symptoms) -> Reason | None:
    """An image that cannot be pulled."""
    if symptoms.waiting not in _IMAGE:
        return None
    lines = [symptoms.message, *map(line_of, newest(symptoms, "Failed"))]
    if sign := sign_in(*lines, table=PULLS):
        return Reason(f"its image cannot be pulled: {sign.cause}", lines, sign.resolution)
    return Reason(
        "its image cannot be pulled",
        lines,
        "Check image.repository and image.digest, that the registry is reachable from the node, "
        "and image.pullSecrets.",
    )


def configuration(symptoms: Symptoms) -> Reason | None:
    """A container that cannot be created: a Secret, a key, a command or a device is missing."""
    if symptoms.waiting not in _NOT_CONFIGURED:
        return None
    lines = [f"{symptoms.waiting}: {symptoms.message}"]
    if sign := sign_in(symptoms.message):
        return Reason(f"its container cannot be created: {sign.cause}", lines, sign.resolution)
    if re.search(r"(?i)(?:secret|configmap) .*not found|find key", symptoms.message):
        return Reason(
            "a Secret or ConfigMap that it refers to, or a key of it, is not there",
            lines,
            "Create what the message names in the release's namespace, or correct the name in the "
            "values.",
        )
    return Reason(
        "its container cannot be created",
        lines,
        "Correct what the message names: a command, a user, a mount or a device.",
    )


def creation(symptoms: Symptoms) -> Reason | None:
    """A pod on its node whose containers are still being created."""
    if symptoms.waiting not in STARTING or symptoms.running_seconds is not None or symptoms.end:
        return None
    last = newest(symptoms, *_VOLUME, *_SANDBOX, *_PROGRESS, "SuccessfulAttachVolume")
    event = last[0] if last else Event("", "")
    if event.reason in _VOLUME:
        return _volume(event)
    if event.reason in _SANDBOX:
        return Reason(
            "its node cannot set up its network",
            [line_of(event)],
            "Look at the node's network plugin (CNI) and container runtime.",
        )
    if event.reason == "Pulling":
        return Reason(
            f"its image is being pulled, for {duration(event.seconds_ago)}",
            [line_of(event)],
            "Wait: images of vLLM have gigabytes. Where it takes too long, use a mirror near the "
            "nodes, or raise `deploy_timeout`.",
        )
    return None


def _volume(event: Event) -> Reason:
    lines = [line_of(event)]
    if sign := sign_in(event.message, table=VOLUMES):
        return Reason(f"a volume cannot be mounted: {sign.cause}", lines, sign.resolution)
    return Reason(
        "a volume cannot be mounted",
        lines,
        "Check that the claim exists and is bound, and that it may be mounted by several nodes.",
    )


def duration(seconds: float) -> str:
    """`40 s`, `12 min`, `3 h`."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def newest(symptoms: Symptoms, *reasons: str) -> list[Event]:
    """The newest event of these reasons, if there is one."""
    return [event for event in symptoms.events if event.reason in reasons][-1:]


def line_of(event: Event) -> str:
    """The event as one line: its reason and its message."""
    return f"{event.reason}: {event.message}"
