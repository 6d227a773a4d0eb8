"""Sample inference completes successfully, whole and streamed, and the answer is valid.

It comes from the model that the replicas' command lines name, where the server says what it loaded.
"""

import pytest

from vllm_rollout.policy import Gates
from vllm_rollout.pytest_plugin.verdict_recorder import VerdictRecorder
from vllm_rollout.serving import Servers, sample_inference


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_sample_inference(
    servers: Servers, slo: Gates, verdict: VerdictRecorder, stream: bool
) -> None:
    for found in sample_inference(servers, slo.inference, verdict.attach, stream=stream):
        verdict(found)
