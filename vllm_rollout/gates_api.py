"""The public names for a team's own gates, in one place; each is imported when it is asked for.

For example `from vllm_rollout.gates_api import InferenceClient, check, percentile_verdict`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm_rollout.capacity.headroom import KnownCapacity
    from vllm_rollout.judge import Outcome, Verdict, VerdictMethod, check
    from vllm_rollout.judge.buckets import bucket_verdict
    from vllm_rollout.judge.compare import compare_latency, compare_rate
    from vllm_rollout.judge.load_capacity import capacity_verdict
    from vllm_rollout.judge.ordered_verdicts import (
        percentile_verdict_in_order,
        rate_verdict_in_order,
    )
    from vllm_rollout.judge.percentile import percentile_verdict
    from vllm_rollout.judge.rate import rate_verdict, requests_needed
    from vllm_rollout.judge.resources import resource_verdict
    from vllm_rollout.judge.response_time import every_sample_within
    from vllm_rollout.judge.sequential import SequentialPercentile, SequentialRate
    from vllm_rollout.judge.trigger import Trigger
    from vllm_rollout.model.deployment import Deployment, Replica, Revision
    from vllm_rollout.model.errors import UnreachableError, UsageError
    from vllm_rollout.model.live_figures import FigureName
    from vllm_rollout.model.load_result import LoadResult, RequestRecord
    from vllm_rollout.model.observation import FiguresRead
    from vllm_rollout.model.preflight_facts import Preflight
    from vllm_rollout.observe.client import InferenceClient
    from vllm_rollout.observe.deployment_metrics import DeploymentMetrics
    from vllm_rollout.policy import Gates, Latency, Policy
    from vllm_rollout.pytest_plugin.judged_load import JudgedLoad
    from vllm_rollout.pytest_plugin.load_questions import (
        CapacityQuestion,
        ErrorRateQuestion,
        GoodputQuestion,
        LatencyQuestion,
    )
    from vllm_rollout.pytest_plugin.verdict_recorder import VerdictRecorder
    from vllm_rollout.serving import Cluster
    from vllm_rollout.settings import Settings

_MODULES = {
    "vllm_rollout.capacity.headroom": ("KnownCapacity",),
    "vllm_rollout.judge": ("Outcome", "Verdict", "VerdictMethod", "check"),
    "vllm_rollout.judge.buckets": ("bucket_verdict",),
    "vllm_rollout.judge.compare": ("compare_latency", "compare_rate"),
    "vllm_rollout.judge.load_capacity": ("capacity_verdict",),
    "vllm_rollout.judge.ordered_verdicts": ("percentile_verdict_in_order", "rate_verdict_in_order"),
    "vllm_rollout.judge.percentile": ("percentile_verdict",),
    "vllm_rollout.judge.rate": ("rate_verdict", "requests_needed"),
    "vllm_rollout.judge.resources": ("resource_verdict",),
    "vllm_rollout.judge.response_time": ("every_sample_within",),
    "vllm_rollout.judge.sequential": ("SequentialPercentile", "SequentialRate"),
    "vllm_rollout.judge.trigger": ("Trigger",),
    "vllm_rollout.model.deployment": ("Deployment", "Replica", "Revision"),
    "vllm_rollout.model.errors": ("UnreachableError", "UsageError"),
    "vllm_rollout.model.live_figures": ("FigureName",),
    "vllm_rollout.model.load_result": ("LoadResult", "RequestRecord"),
    "vllm_rollout.model.observation": ("FiguresRead",),
    "vllm_rollout.model.preflight_facts": ("Preflight",),
    "vllm_rollout.observe.client": ("InferenceClient",),
    "vllm_rollout.observe.deployment_metrics": ("DeploymentMetrics",),
    "vllm_rollout.policy": ("Gates", "Latency", "Policy"),
    "vllm_rollout.pytest_plugin.judged_load": ("JudgedLoad",),
    "vllm_rollout.pytest_plugin.load_questions": (
        "CapacityQuestion",
        "ErrorRateQuestion",
        "GoodputQuestion",
        "LatencyQuestion",
    ),
    "vllm_rollout.pytest_plugin.verdict_recorder": ("VerdictRecorder",),
    "vllm_rollout.serving": ("Cluster",),
    "vllm_rollout.settings": ("Settings",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "CapacityQuestion",
    "Cluster",
    "Deployment",
    "DeploymentMetrics",
    "ErrorRateQuestion",
    "FigureName",
    "FiguresRead",
    "Gates",
    "GoodputQuestion",
    "InferenceClient",
    "JudgedLoad",
    "KnownCapacity",
    "Latency",
    "LatencyQuestion",
    "LoadResult",
    "Outcome",
    "Policy",
    "Preflight",
    "Replica",
    "RequestRecord",
    "Revision",
    "SequentialPercentile",
    "SequentialRate",
    "Settings",
    "Trigger",
    "UnreachableError",
    "UsageError",
    "Verdict",
    "VerdictMethod",
    "VerdictRecorder",
    "bucket_verdict",
    "capacity_verdict",
    "check",
    "compare_latency",
    "compare_rate",
    "every_sample_within",
    "percentile_verdict",
    "percentile_verdict_in_order",
    "rate_verdict",
    "rate_verdict_in_order",
    "requests_needed",
    "resource_verdict",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULE_OF[name]), name)
