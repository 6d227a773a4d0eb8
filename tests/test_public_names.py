"""The names that teams' gates and other programs rely on: none may go or move unnoticed."""

from importlib import import_module

import pytest

from vllm_rollout import gates_api

GATES = {
    "CapacityQuestion",
    "Cluster",
    "Deployment",
    "DeploymentMetrics",
    "FigureName",
    "FiguresRead",
    "ErrorRateQuestion",
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
}
OTHER_PROGRAMS = {
    "vllm_rollout.judge": (
        "Outcome", "Verdict", "VerdictMethod", "check", "percentile_verdict_in_order",
        "rate_verdict_in_order",
    ),
    "vllm_rollout.judge.buckets": ("bucket_verdict",),
    "vllm_rollout.judge.compare": ("compare_latency", "compare_rate"),
    "vllm_rollout.judge.percentile": ("percentile_verdict",),
    "vllm_rollout.judge.rate": ("rate_verdict", "requests_needed"),
    "vllm_rollout.judge.sequential": ("SequentialPercentile", "SequentialRate"),
    "vllm_rollout.judge.trigger": ("Trigger",),
}  # fmt: skip


def test_the_public_names_for_gates_are_these() -> None:
    assert set(gates_api.__all__) == GATES
    missing = [name for name in GATES if not hasattr(gates_api, name)]
    assert missing == []


def test_a_name_that_is_not_public_is_an_import_error() -> None:
    for module in (gates_api, import_module("vllm_rollout.judge")):
        assert not hasattr(module, "no_such_name")


@pytest.mark.parametrize("module", sorted(OTHER_PROGRAMS))
def test_names_for_other_programs_stay_in_their_modules(module: str) -> None:
    found = import_module(module)
    assert [name for name in OTHER_PROGRAMS[module] if not hasattr(found, name)] == []
