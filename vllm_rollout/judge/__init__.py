"""What follows: observations and policy in, verdicts out. Pure: no I/O, no clock."""

from vllm_rollout.model.verdict import Outcome, Verdict, check, worst

__all__ = ["Outcome", "Verdict", "check", "worst"]
