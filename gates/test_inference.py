"""Sample inference completes successfully, whole and streamed, and the answer is valid."""

import pytest

from vllm_rollout.deployment import Deployment
from vllm_rollout.gating.verdicts import VerdictRecorder
from vllm_rollout.judge import check
from vllm_rollout.observe.client import InferenceClient
from vllm_rollout.policy import Gates


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_sample_inference(
    client: InferenceClient,
    deployment: Deployment,
    slo: Gates,
    verdict: VerdictRecorder,
    stream: bool,
) -> None:
    gate = slo.inference
    served = client.models(timeout_seconds=gate.timeout_seconds)
    verdict(
        check(
            deployment.model in served,
            f"/v1/models lists {', '.join(served) or 'nothing'}",
            remedy=f"Serve it under its name: --served-model-name {deployment.model}.",
        )
    )
    result = client.complete(
        gate.prompt, max_tokens=gate.max_tokens, timeout_seconds=gate.timeout_seconds, stream=stream
    )
    verdict.attach("answer", result.answer.text if result.answer else result.error)
    verdict(
        check(
            result.ok,
            f"{result.answer.completion_tokens} tokens in {result.seconds:.3g} s"
            if result.answer
            else f"no valid answer (HTTP {result.status}, {result.outcome}): {result.error}",
            remedy="The server must answer /v1/completions as the OpenAI API does.",
        )
    )
