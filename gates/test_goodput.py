"""Goodput: enough requests meet every latency limit at once, failures counting as misses."""

from vllm_rollout.gating.load_questions import GoodputQuestion
from vllm_rollout.gating.load_watch import JudgedLoad
from vllm_rollout.gating.verdicts import VerdictRecorder
from vllm_rollout.policy import Gates


def test_goodput(judged_load: JudgedLoad, slo: Gates, verdict: VerdictRecorder) -> None:
    verdict(judged_load.verdict(GoodputQuestion(slo.goodput)))
