"""The policy: YAML to a typed, validated `Policy`; the defaults are the workflow's numbers."""

from vllm_rollout.policy.conditions import SignOff, Soak
from vllm_rollout.policy.dump import dump_policy
from vllm_rollout.policy.gates import (
    Environment,
    ErrorRate,
    Gates,
    Goodput,
    Health,
    Inference,
    Latency,
    Load,
    LoadCapacity,
    Pods,
    ResponseTime,
    Smoke,
)
from vllm_rollout.policy.load_policy import Override, load_policy
from vllm_rollout.policy.load_profile import EarlyStop
from vllm_rollout.policy.models import ModelRules, Policy, Rules
from vllm_rollout.policy.outputs import Outputs
from vllm_rollout.policy.platforms import Kubernetes, Local, StartupProbe, StartupThreshold
from vllm_rollout.policy.prometheus import LiveMetrics
from vllm_rollout.policy.ramp import RampStep
from vllm_rollout.policy.watch import (
    CrashLoop,
    ErrorSpike,
    HealthTrigger,
    LatencyTrigger,
    ShareTrigger,
    Triggers,
    Watch,
    WatchSlo,
)
from vllm_rollout.policy.windows import Freeze, Hours, OnCall, Windows

__all__ = [
    "CrashLoop",
    "EarlyStop",
    "Environment",
    "ErrorRate",
    "ErrorSpike",
    "Freeze",
    "Gates",
    "Goodput",
    "Health",
    "HealthTrigger",
    "Hours",
    "Inference",
    "Kubernetes",
    "Latency",
    "LatencyTrigger",
    "LiveMetrics",
    "Load",
    "LoadCapacity",
    "Local",
    "ModelRules",
    "OnCall",
    "Outputs",
    "Override",
    "Pods",
    "Policy",
    "RampStep",
    "ResponseTime",
    "Rules",
    "ShareTrigger",
    "SignOff",
    "Smoke",
    "Soak",
    "StartupProbe",
    "StartupThreshold",
    "Triggers",
    "Watch",
    "WatchSlo",
    "Windows",
    "dump_policy",
    "load_policy",
]
