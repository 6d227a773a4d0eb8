"""Model outputs for QA: sample prompts are answered, and the report shows the answers."""

from vllm_rollout.judge import Outcome, check
from vllm_rollout.judge.replicas import cached_verdict
from vllm_rollout.judge.sample_outputs import output_verdict
from vllm_rollout.policy import Gates
from vllm_rollout.pytest_plugin.verdict_recorder import VerdictRecorder
from vllm_rollout.serving import Servers, unanswered


def test_sample_outputs(servers: Servers, slo: Gates, verdict: VerdictRecorder) -> None:
    gate, client = slo.outputs, servers.address
    found = []
    for sample in gate.samples:
        result = client.ask(
            sample.prompt,
            max_tokens=gate.max_tokens,
            timeout_seconds=gate.timeout_seconds,
            **gate.sampling,
        )
        verdict.attach(sample.prompt, result.answer.text if result.answer else result.error)
        found.append((sample, result))
    for sample, result in found:
        if result.answer is None:
            why = unanswered(client, servers.model, result)
            if why.outcome is not Outcome.FAIL:
                verdict(why)
            reason = f"{sample.prompt!r} got no valid answer: {why.reason}"
            verdict(check(False, reason, remedy=why.remedy))
        elif result.cached:
            verdict(cached_verdict(result.cached))
        else:
            answer = result.answer
            tokens = answer.completion_tokens
            verdict(output_verdict(sample, answer.text, completion_tokens=tokens))
