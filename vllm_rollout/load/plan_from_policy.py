"""Load plan from the policy's load block; files that it names are read here."""

import json
import secrets
from pathlib import Path
from typing import Any

from vllm_rollout.load.trace import read_trace
from vllm_rollout.model.deployment import Deployment
from vllm_rollout.model.errors import UsageError
from vllm_rollout.model.load_plan import Lengths, LoadPlan, RateSegment, RequestClass, TraceEntry
from vllm_rollout.model.units import counted
from vllm_rollout.policy import Policy
from vllm_rollout.policy.gates import Load
from vllm_rollout.policy.load_profile import RequestKind, TokenCounts

_MOST_PROMPTS = 10_000
_AFTER_THE_LAST_SECONDS = 0.001


def load_plan(policy: Policy, deployment: Deployment, *, base_url: str) -> LoadPlan:
    """The load the policy asks for against `base_url`.

    Raises:
        UsageError: a file that it names cannot be used.
    """
    load = policy.environments[deployment.environment].load
    traffic = load.traffic
    trace: tuple[TraceEntry, ...] = ()
    duration = load.duration_seconds
    shape: tuple[RateSegment, ...] = ()
    if traffic.replay is not None:
        trace = read_trace(Path(traffic.replay.file), speed=traffic.replay.speed)
        duration = trace[-1].at + _AFTER_THE_LAST_SECONDS
    elif traffic.profile is not None:
        duration = traffic.profile_duration.total_seconds()
        shape = tuple(
            RateSegment(
                seconds=each.for_.total_seconds(), start=each.rate, end=each.to or each.rate
            )
            for each in traffic.profile
        )
    return LoadPlan(
        base_url=base_url,
        model=policy.served_name(deployment.model),
        rate_per_second=load.rate,
        duration_seconds=duration,
        warmup_seconds=load.warmup_seconds,
        arrivals=load.arrivals,
        shape=shape,
        trace=trace,
        timeout_seconds=load.timeout_seconds,
        api=policy.api,
        prompt=load.prompt,
        max_tokens=load.max_tokens,
        stream=load.stream,
        classes=_classes(load, policy.api),
        workers=load.workers,
        seed=load.seed,
        nonce=secrets.token_hex(3),
    )


def _classes(load: Load, api: str) -> tuple[RequestClass, ...]:
    return tuple(
        RequestClass(
            name=each.name,
            weight=each.weight,
            api=each.api or api,
            stream=each.stream,
            kind=each.prompts,
            prompts=_read_prompts(each),
            prompt_tokens=_lengths(each.prompt_tokens) if each.prompt_tokens else None,
            output=_lengths(each.max_tokens),
            turns=each.turns,
        )
        for each in load.traffic.workload or ()
    )


def _lengths(counts: TokenCounts) -> Lengths:
    p95 = counts.p95 or counts.median
    return Lengths(median=counts.median, p95=p95, longest=counts.longest or 4 * p95)


def _read_prompts(kind: RequestKind) -> tuple[Any, ...]:
    """The prompts of a file: JSON lines, each with `prompt` (text) or `messages` (chat)."""
    if kind.file is None:
        return ()
    path = Path(kind.file)
    remedy = 'Write a JSON object on each line: {"prompt": "…"} or {"messages": [{"role": …}]}.'
    found: list[Any] = []
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the prompts of {path} cannot be read: {error}", remedy=remedy) from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
            prompt = fields.get("prompt") or tuple(_message(each) for each in fields["messages"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UsageError(f"{path}:{number} is no prompt: {error!r}", remedy=remedy) from error
        if not prompt or not isinstance(prompt, str | tuple):
            raise UsageError(f"{path}:{number} holds no prompt", remedy=remedy)
        found.append(prompt)
    if not 0 < len(found) <= _MOST_PROMPTS:
        raise UsageError(
            f"{path} holds {counted(len(found), 'prompt')}; 1 to {_MOST_PROMPTS:,} are of use",
            remedy=remedy,
        )
    return tuple(found)


def _message(each: Any) -> dict[str, str]:
    role, content = each["role"], each["content"]
    if not (isinstance(role, str) and isinstance(content, str)):
        raise TypeError("role and content must be text")
    return {"role": role, "content": content}
