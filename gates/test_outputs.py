"""Model outputs for QA: sample prompts are answered, and the report shows the answers."""

from vllm_rollout.judge import check
from vllm_rollout.judge.sample_outputs import output_verdict
from vllm_rollout.observe.client import InferenceClient
from vllm_rollout.policy import Gates
from vllm_rollout.pytest_plugin.verdict_recorder import VerdictRecorder


def test_sample_outputs(client: InferenceClient, slo: Gates, verdict: VerdictRecorder) -> None:
    gate = slo.outputs
    found = []
    for sample in gate.samples:
        result = client.complete(
            sample.prompt, max_tokens=gate.max_tokens, timeout_seconds=gate.timeout_seconds
        )
        text = result.answer.text if result.answer else None
        verdict.attach(sample.prompt, result.error if text is None else text)
        found.append((sample, text, result.error))
    for sample, text, error in found:
        if text is None:
            verdict(
                check(
                    False,
                    f"{sample.prompt!r} got no valid answer: {error}",
                    remedy="See the log of the server.",
                )
            )
        else:
            verdict(output_verdict(sample, text))
