"""Model outputs for QA: sample prompts are answered, and the report shows the answers."""

from vllm_rollout.judge import check
from vllm_rollout.judge.diagnosis import no_answer_remedy
from vllm_rollout.judge.replicas import cached_verdict
from vllm_rollout.judge.sample_outputs import output_verdict
from vllm_rollout.policy import Gates
from vllm_rollout.pytest_plugin.verdict_recorder import VerdictRecorder
from vllm_rollout.serving import Servers, no_word_on_the_build


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
        if refused := no_word_on_the_build(client, result.status, result.error):
            verdict(refused)
        verdict.attach(sample.prompt, result.answer.text if result.answer else result.error)
        found.append((sample, result))
    for sample, result in found:
        if result.answer is None:
            verdict(
                check(
                    False,
                    f"{sample.prompt!r} got no valid answer: {result.error}",
                    remedy=no_answer_remedy(client.path, status=result.status, error=result.error),
                )
            )
        elif result.cached:
            verdict(cached_verdict(result.cached))
        else:
            answer = result.answer
            tokens = answer.completion_tokens
            verdict(output_verdict(sample, answer.text, completion_tokens=tokens))
