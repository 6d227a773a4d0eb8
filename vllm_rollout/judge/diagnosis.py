"""Diagnosis of a replica that does not serve: likely cause and resolution, from its symptoms.

What is so now (the container's state, its last end, its log) stands before events, which may be
over. The resolutions are the workflow's ("Common Issues and Resolutions") where it has one.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vllm_rollout.judge import pod_start
from vllm_rollout.judge.log_signs import EXIT_CODES, key_lines, sign_in
from vllm_rollout.judge.pod_start import Reason, duration, line_of, newest
from vllm_rollout.model.deployment import Deployment
from vllm_rollout.model.symptoms import Symptoms
from vllm_rollout.model.text import shown
from vllm_rollout.model.units import counted
from vllm_rollout.next_command import next_command, release_command
from vllm_rollout.policy import Policy

_LINE_LENGTH = 300
_SIGNALLED = (None, 0, 137, 143)
"""Exit codes of a process that the kubelet has ended."""
_LONG_SECONDS = 3600.0
_EVENT_SLACK_SECONDS = 5.0

_Rule = Callable[[Symptoms], Reason | None]


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
        if each.replica is None or each.job or not each.replica.ready
    )


def findings_of(
    symptoms: Sequence[Symptoms], policy: Policy, deployment: Deployment
) -> tuple[Finding, ...]:
    """`diagnose` with what the policy asks of the start-up probe of a model of this size."""
    threshold = policy.startup_failure_threshold(policy.parameters(deployment.model))
    return diagnose(symptoms, deployment, failure_threshold=threshold)


def _finding(symptoms: Symptoms, deployment: Deployment, failure_threshold: int | None) -> Finding:
    rules: tuple[_Rule, ...] = (
        pod_start.refused,
        pod_start.overdue,
        pod_start.given_up,
        pod_start.node_lost,
        pod_start.unscheduled,
        pod_start.image,
        pod_start.configuration,
        pod_start.creation,
        _out_of_memory,
        lambda each: _ended_by_probe(each, failure_threshold),
        lambda each: _crash(each, deployment),
        _unfinished,
        _loading,
        _unready,
    )
    found = next((reason for rule in rules if (reason := rule(symptoms))), _unknown(symptoms))
    where = {"sidecar": "its sidecar", "init": "its init container"}.get(symptoms.role)
    cause = f"{where} {symptoms.container}: {found.cause}" if where else found.cause
    if symptoms.job.startswith("hook") and symptoms.replica and symptoms.replica.phase != "Failed":
        cause = f"{cause}; the change waits for it until `deploy_timeout`"
    lines = dict.fromkeys(shown(line, _LINE_LENGTH) for line in found.shown_by if line.strip())
    return Finding(
        replica=_name(symptoms),
        cause=shown(cause, _LINE_LENGTH),
        shown_by=tuple(lines),
        resolution=found.resolution,
    )


def _name(symptoms: Symptoms) -> str:
    if symptoms.replica is None:
        return symptoms.job or "a replica that could not be made"
    name = symptoms.replica.name
    return f"{symptoms.job}, pod {name}" if symptoms.job else name


def _out_of_memory(symptoms: Symptoms) -> Reason | None:
    end = symptoms.end
    if end is None or end.reason != "OOMKilled":
        return None
    return Reason(
        "it was killed at its memory limit",
        [f"last end: OOMKilled, exit code {end.exit_code}", *key_lines(symptoms.log)],
        "Raise resources.limits.memory: loading takes about as much as the weights.",
    )


def _ended_by_probe(symptoms: Symptoms, failure_threshold: int | None) -> Reason | None:
    """A process that the kubelet ended, because a probe failed too often."""
    end, probe = symptoms.end, symptoms.startup_probe
    if end is None or end.exit_code not in _SIGNALLED:
        return None
    began = None if end.ran_seconds is None else end.seconds_ago + end.ran_seconds
    killed = [
        event
        for event in newest(symptoms, "Killing")
        if began is None or event.seconds_ago <= began + _EVENT_SLACK_SECONDS
    ]
    lines = [line_of(event) for event in [*newest(symptoms, "Unhealthy"), *killed]]
    lines += key_lines(symptoms.log)
    if any("failed liveness probe" in event.message for event in killed):
        if probe is None:
            return Reason(
                "its liveness probe ended it, perhaps while the model was loading",
                lines,
                "Give it a startupProbe that waits as long as loading takes.",
            )
        return Reason(
            "its liveness probe ended it: it did not answer",
            lines,
            "The engine may hang or be overloaded: see the log, and what livenessProbe allows.",
        )
    whole = probe is not None and began is not None and (end.ran_seconds or 0.0) >= probe.seconds
    if not whole and not any("failed startup probe" in event.message for event in killed):
        return None
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
    return Reason(
        f"the model was not loaded within the start-up probe's time{allowed}",
        lines,
        f"Set startupProbe.failureThreshold{value} in the values (7B-13B: 20, 70B: 40), if the "
        "log shows that loading goes on; else see what it waits for.",
    )


def _crash(symptoms: Symptoms, deployment: Deployment) -> Reason | None:
    end, replica = symptoms.end, symptoms.replica
    gone = symptoms.waiting == "CrashLoopBackOff" or (replica and replica.phase == "Failed")
    if end is None and not gone and not (symptoms.job and replica is None):
        return None
    code = "unknown" if end is None or end.exit_code is None else end.exit_code
    message = end.message if end else ""
    sign = sign_in(symptoms.log, message, symptoms.message)
    lines = [f"last end: exit code {code}, {counted(symptoms.restarts, 'restart')}", message]
    lines += [line_of(event) for event in symptoms.events if symptoms.job and not symptoms.log]
    lines += key_lines(symptoms.log, sign)
    base = "its process ends soon after every start"
    if symptoms.job:
        base = "it failed"
    elif end and end.ran_seconds and end.ran_seconds > _LONG_SECONDS:
        base = f"its process ended after {duration(end.ran_seconds)}"
    if sign:
        return Reason(f"{base}: {sign.cause}", lines, sign.resolution)
    if end and end.exit_code in EXIT_CODES:
        cause, resolution = EXIT_CODES[end.exit_code]
        return Reason(f"{base}: {cause}", lines, resolution)
    more = release_command("logs", deployment)
    if symptoms.job and not symptoms.log:
        return Reason(
            base, lines, "Its pods are gone, and their log with them: run it by itself to see it."
        )
    if symptoms.replica and (symptoms.job or symptoms.role != "server"):
        where = ("-c", symptoms.container, "-n", deployment.namespace)
        more = next_command("kubectl", "logs", symptoms.replica.name, *where)
    return Reason(base, lines, f"The last lines of the log say why. More of it: {more}")


def _unfinished(symptoms: Symptoms) -> Reason | None:
    """A Job that a change waits for and that has not ended."""
    if not symptoms.job or symptoms.running_seconds is None:
        return None
    if symptoms.role == "sidecar":
        return Reason(
            "it runs on after the work is done, so that the Job does not end by itself",
            [],
            "Keep it out of the Job's pods (sidecar.istio.io/inject: 'false', linkerd.io/inject: "
            "disabled), or have it injected as a native sidecar.",
        )
    return Reason(
        f"it has run for {duration(symptoms.running_seconds)} and has not ended",
        key_lines(symptoms.log, sign_in(symptoms.log)),
        "If its log goes on (a download), raise `deploy_timeout` in the policy; if it hangs, the "
        "last line says where.",
    )


def _loading(symptoms: Symptoms) -> Reason | None:
    """A server whose start-up probe has not passed yet, and may still."""
    probe, ran = symptoms.startup_probe, symptoms.running_seconds
    if probe is None or ran is None:
        return None
    failed = newest(symptoms, "Unhealthy")
    just_now = failed and failed[0].message.startswith("Startup probe") and ran <= probe.seconds
    if symptoms.started and not just_now:
        return None
    return Reason(
        f"it is still loading, {duration(ran)} of {math.ceil(probe.seconds / 60)} min "
        f"(start-up probe: {probe.failure_threshold} × {probe.period_seconds:g} s)",
        key_lines(symptoms.log),
        "Wait, if its log goes on. `deploy_timeout` has to be longer than the start-up probe "
        "allows.",
    )


def _unready(symptoms: Symptoms) -> Reason | None:
    events = newest(symptoms, "Unhealthy")
    if not events or symptoms.running_seconds is None:
        return None
    return Reason(
        "it runs, and its health probe fails",
        [*map(line_of, events), *key_lines(symptoms.log)],
        "The engine may hang or be dead while the process lives: see the log, restart the pod."
        if symptoms.startup_probe
        else "It may still be loading, which nothing tells without a startupProbe. Else the engine "
        "hangs or is dead while the process lives: see the log, restart the pod.",
    )


def _unknown(symptoms: Symptoms) -> Reason:
    replica = symptoms.replica
    state = f"{replica.phase} {replica.reason} {replica.message}".strip() if replica else ""
    return Reason(
        "it is not ready, and nothing says why",
        [state, *map(line_of, symptoms.events), *key_lines(symptoms.log)],
        "It may still be starting. Else look at it with kubectl describe.",
    )
