"""Verification that a deployment serves, in this process.

It makes the checks of the gates in `VERIFY_GATES`, with the environment's numbers, and gives their
verdicts. It starts no process and writes no file, so that a full disk or a broken pytest does not
make a healthy deployment appear broken.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from typing import Any

from vllm_rollout.gate_runs import address_of, gate_run, identity
from vllm_rollout.judge import Outcome, Verdict
from vllm_rollout.model.deployment import Deployment
from vllm_rollout.model.errors import ExitCode, RolloutError, UnreachableError
from vllm_rollout.model.evidence import Attachment, GateResult, GateRun
from vllm_rollout.model.verdict import NoToken, NoWord
from vllm_rollout.next_command import next_command
from vllm_rollout.platform.reader import ReleaseReader
from vllm_rollout.policy import Gates
from vllm_rollout.policy.gates import Health
from vllm_rollout.report.formatting import short_title
from vllm_rollout.rollout.run import Clock
from vllm_rollout.serving import (
    Attach,
    Cluster,
    Servers,
    health_and_a_token,
    not_asked,
    pods_running_and_ready,
    sample_inference,
    why_not_asked,
)
from vllm_rollout.settings import Settings

VERIFY_GATES = ("pods", "health", "inference")
"""Gates whose checks a deployment must pass to be reported as serving: the first two always, and
that of inference where the policy has it on.
"""


class CannotVerifyError(RolloutError):
    """The verification itself did not work: nothing is known of the deployment."""

    exit_code = ExitCode.INCONCLUSIVE


def verify(settings: Settings, deployment: Deployment, clock: Clock) -> GateRun:
    """Check that the deployment serves, at the address that its platform gives.

    A connectivity error on the path to it is `unreachable`, and no fail, as in a gate.

    Raises:
        CannotVerifyError: the verification did not work, and nothing it saw is a fail.
        UnreachableError: the platform does not answer.
    """
    try:
        run = _run(replace(settings, base_url=None), deployment, clock)
    except UnreachableError:
        raise
    except Exception as error:
        raise _cannot_verify(deployment, f"{type(error).__name__}: {error}") from error
    bad = [each for gate in run.gates for each in gate.verdicts if not each.passed]
    knows = not all(isinstance(each, NoWord) for each in bad)
    if run.outcome is Outcome.INCONCLUSIVE and not (run.unreachable or run.changed or knows):
        why = [f"{gate.gate}: {gate.error}" for gate in run.gates if gate.error]
        named = [each for each in bad if each.remedy] or bad  # else it says only what follows
        why += dict.fromkeys(each.reason for each in named)
        remedies = dict.fromkeys(each.remedy for each in named if each.remedy)
        raise _cannot_verify(deployment, "; ".join(why), *remedies)
    return run


def _cannot_verify(deployment: Deployment, why: str, *remedies: str) -> CannotVerifyError:
    look = (
        "Check that it serves: "
        + next_command("vllm-rollout", "status", deployment.model)
        + "; and "
        + next_command("pytest", "-m", deployment.environment, "--model", deployment.model)
    )
    return CannotVerifyError(
        f"{deployment} could not be verified: {why}", remedy=" ".join([*remedies, look])
    )


def _run(settings: Settings, deployment: Deployment, clock: Clock) -> GateRun:
    platform = settings.reader()
    started, before = clock.now(), _identity(platform, deployment)
    with ExitStack() as clients:
        checks = _checks(settings, deployment, clients)
        results = _results(settings, deployment, checks, clock)
    after = _identity(platform, deployment)
    known = [found for found in (before, after) if "unknown" not in found]
    unknown = next((found for found in (after, before) if "unknown" in found), None)
    if unknown and results and not results[-1].error:
        results[-1] = replace(
            results[-1], error=unknown["unknown"], unreachable=unknown.get("unreachable", "")
        )
    return gate_run(
        settings,
        deployment,
        base_url=address_of(settings, deployment),
        identities=known or [identity(None, deployment)],
        started=started,
        finished=clock.now(),
        expected=tuple(dict.fromkeys(each.gate for each in results)),
        results=results,
        loads={},
    )


def _identity(platform: ReleaseReader, deployment: Deployment) -> dict[str, Any]:
    """As `identity`; any exception makes it unknown."""
    try:
        return identity(platform, deployment)
    except Exception as error:  # noqa: BLE001 - of the checker: see `_result`
        return {**identity(None, deployment), "unknown": f"{type(error).__name__}: {error}"}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Check:
    """One check of a gate; one that `asks` sends requests to the server."""

    gate: str
    title: str
    ask: Callable[[Attach], Iterator[Verdict]]
    asks: bool = False


def _checks(settings: Settings, deployment: Deployment, clients: ExitStack) -> Iterator[_Check]:
    """Yield the checks, cheap ones first: those of a gate that is off have a probe's timeout."""
    policy = settings.policy.for_model(deployment.model)
    gates: Gates = policy.environments[deployment.environment].gates
    health = gates.health or Health(timeout=policy.watch.probe_timeout)
    cluster = Cluster(settings.reader(), deployment, policy)

    def servers() -> Servers:
        return Servers.of(settings, deployment, clients)

    yield _Check(
        gate="pods",
        title="Pods Running and Ready",
        ask=lambda attach: pods_running_and_ready(cluster, attach),
    )
    yield _Check(
        gate="health",
        title="Health endpoint returns 200, and a token comes",
        ask=lambda _attach: health_and_a_token(servers(), health),
        asks=True,
    )
    if (inference := gates.inference) is not None:
        for stream in (False, True):
            yield _Check(
                gate="inference",
                title="Sample inference completes successfully",
                ask=lambda attach, stream=stream: sample_inference(  # type: ignore[misc]
                    servers(), inference, attach, stream=stream
                ),
                asks=True,
            )


def _results(
    settings: Settings, deployment: Deployment, checks: Iterator[_Check], clock: Clock
) -> list[GateResult]:
    """Return the checks' results; where nobody gets a token, no further one is asked for."""
    results: list[GateResult] = []
    silent = ""
    for each in checks:
        asked = each
        if silent and each.asks:
            asked = replace(each, ask=partial(_not_asked, silent))
        found = _result(settings, deployment, asked, clock.now())
        results.append(found)
        no_token = any(isinstance(verdict, NoToken) for verdict in found.verdicts)
        if not silent and (no_token or (each.asks and found.unreachable)):
            silent = why_not_asked(short_title(found.title), unreachable=bool(found.unreachable))
    return results


def _not_asked(why: str, _attach: Attach) -> Iterator[Verdict]:
    yield not_asked(why)


def _result(
    settings: Settings, deployment: Deployment, asked: _Check, started: datetime
) -> GateResult:
    """Return the check's result; an exception is its error, the path's errors are unreachable."""
    attachments: list[Attachment] = []
    verdicts: list[Verdict] = []
    error = unreachable = ""
    begun, path_before = time.monotonic(), settings.path_errors(deployment)
    try:
        found = asked.ask(
            lambda title, text: attachments.append(Attachment(title=title, text=text))
        )
        for verdict in found:
            verdicts.append(verdict)
            if not verdict.passed:
                break
    except UnreachableError as raised:
        error, unreachable = str(raised), raised.address
    except Exception as raised:  # noqa: BLE001 - of the checker, and never held against what it checks
        error = f"{type(raised).__name__}: {raised}"
    if asked.asks and (error or not all(verdict.passed for verdict in verdicts)):
        path_error = settings.path_errors(deployment).since(path_before)
        if path_error is not None:
            error, unreachable = str(path_error), path_error.address
            verdicts = [verdict for verdict in verdicts if verdict.passed]
    return GateResult(
        gate=asked.gate,
        item=asked.gate,
        title=asked.title,
        verdicts=tuple(verdicts),
        error=error,
        unreachable=unreachable,
        attachments=tuple(attachments),
        started=started,
        duration_seconds=time.monotonic() - begun,
    )
