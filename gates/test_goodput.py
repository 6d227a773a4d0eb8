"""Goodput: enough requests meet every latency limit at once, failures counting as misses."""

from vllm_rollout.gating.verdicts import VerdictRecorder
from vllm_rollout.judge.dependence import goodput_verdict_in_order
from vllm_rollout.judge.goodput import GoodputLimits
from vllm_rollout.observe.load import LoadResult
from vllm_rollout.policy import Gates, Policy


def test_goodput(load: LoadResult, slo: Gates, policy: Policy, verdict: VerdictRecorder) -> None:
    verdict(
        goodput_verdict_in_order(
            GoodputLimits(
                ttft_seconds=slo.goodput.ttft_seconds,
                inter_token_seconds=slo.goodput.itl_seconds,
                latency_seconds=slo.goodput.latency_seconds,
            ),
            target=slo.goodput.target,
            confidence=policy.confidence,
            ttft_seconds=load.ttft_in_order,
            inter_token_seconds=load.itl_in_order,
            latency_seconds=load.latencies_in_order,
            rate_per_second=load.plan.mean_rate_per_second,
        )
    )
