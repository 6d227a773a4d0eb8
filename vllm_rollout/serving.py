"""Checks of whether a deployment serves: the gates and the verification of a rollback share them.

Each yields its verdicts in order. Whoever asks stops at the first that is not a pass, so that a
server whose `/health` fails is not asked for a token as well.
"""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass

from vllm_rollout.judge import Verdict, check
from vllm_rollout.judge.diagnosis import Finding, findings_of
from vllm_rollout.judge.replicas import replicas_verdict
from vllm_rollout.model.deployment import Deployment, Replica, Revision
from vllm_rollout.model.errors import RolloutError
from vllm_rollout.observe.client import InferenceClient
from vllm_rollout.platform.reader import ReleaseReader
from vllm_rollout.policy import Policy
from vllm_rollout.policy.gates import Health, Inference

Attach = Callable[[str, str], None]
"""Shows a text beside the gate: its title and the text."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """The release under test, as its platform shows it."""

    platform: ReleaseReader
    deployment: Deployment
    policy: Policy

    def replicas(self) -> list[Replica]:
        """The replicas that exist now."""
        return list(self.platform.replicas(self.deployment))

    def revision(self) -> Revision | None:
        """The newest revision, or None when the release does not exist."""
        history = self.platform.history(self.deployment)
        return history[-1] if history else None

    def findings(self) -> tuple[Finding, ...]:
        """Return why each replica that is not ready is not."""
        symptoms = self.platform.symptoms(self.deployment)
        return findings_of(symptoms, self.policy, self.deployment.model)

    def logs(self, *, tail: int = 20) -> str:
        """The last log lines of each replica."""
        return self.platform.logs(self.deployment, tail=tail)


def pods_running_and_ready(cluster: Cluster, attach: Attach) -> Iterator[Verdict]:
    """Every replica of the release is Running and Ready; `attach` gets why one is not."""
    revision, replicas = cluster.revision(), cluster.replicas()
    found: tuple[Finding, ...] = ()
    if not replicas or not all(replica.ready for replica in replicas):
        # They are not ready, whether or not it can be found out why.
        with suppress(RolloutError, OSError):
            found = cluster.findings()
    for finding in found:
        attach(f"{finding.replica}: {finding.cause}", finding.text)
    expected = revision.capacity if revision else None
    yield replicas_verdict(replicas, expected=expected, findings=found)


def health_and_a_token(client: InferenceClient, gate: Health) -> Iterator[Verdict]:
    """`/health` returns 200, and one token comes."""
    health = client.health(timeout_seconds=gate.timeout_seconds)
    yield check(
        health.status == 200,
        f"/health answered {health.status or health.error}",
        remedy="Look at the replica's log: vllm-rollout logs MODEL --environment ENVIRONMENT.",
    )
    token = client.complete("Hello", max_tokens=1, timeout_seconds=gate.timeout_seconds)
    yield check(
        token.ok,
        f"one token came in {token.seconds:.3g} s"
        if token.ok
        else f"/health says 200 and no token comes: {token.error or token.outcome}",
        remedy="The engine hangs behind a healthy front: restart the replica and read its log.",
    )


def sample_inference(
    client: InferenceClient, gate: Inference, attach: Attach, *, stream: bool
) -> Iterator[Verdict]:
    """The model is listed by its name, and the sample prompt gets a valid answer."""
    served = client.models(timeout_seconds=gate.timeout_seconds)
    yield check(
        client.model in served,
        f"/v1/models lists {', '.join(served) or 'nothing'}",
        remedy=f"Serve it under its name: --served-model-name {client.model}.",
    )
    result = client.complete(
        gate.prompt, max_tokens=gate.max_tokens, timeout_seconds=gate.timeout_seconds, stream=stream
    )
    attach("answer", result.answer.text if result.answer else result.error)
    yield check(
        result.ok,
        f"{result.answer.completion_tokens} tokens in {result.seconds:.3g} s"
        if result.answer
        else f"no valid answer (HTTP {result.status}, {result.outcome}): {result.error}",
        remedy="The server must answer /v1/completions as the OpenAI API does.",
    )
