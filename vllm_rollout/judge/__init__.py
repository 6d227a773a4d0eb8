"""Verdicts from observations and policy. Pure: no I/O, no clock.

Modules that need NumPy are imported when they are asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from vllm_rollout.model.verdict import Outcome, Verdict, VerdictMethod, check, worst

if TYPE_CHECKING:
    from vllm_rollout.judge.ordered_verdicts import (
        percentile_verdict_in_order,
        rate_verdict_in_order,
    )

__all__ = [
    "Outcome",
    "Verdict",
    "VerdictMethod",
    "check",
    "percentile_verdict_in_order",
    "rate_verdict_in_order",
    "worst",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("vllm_rollout.judge.ordered_verdicts"), name)
