"""Goodput: enough requests meet every latency limit at once, failures counting as misses."""

from vllm_rollout.policy import Gates
from vllm_rollout.pytest_plugin.judged_load import JudgedLoad
from vllm_rollout.pytest_plugin.load_questions import GoodputQuestion
from vllm_rollout.pytest_plugin.verdict_recorder import VerdictRecorder


def test_goodput(judged_load: JudgedLoad, slo: Gates, verdict: VerdictRecorder) -> None:
    verdict(judged_load.verdict(GoodputQuestion(slo.goodput)))
