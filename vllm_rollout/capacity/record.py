"""Keeps what was found in the platform's store, by release and build, for the load gate."""

import math
from datetime import datetime
from typing import Any

from vllm_rollout.capacity.headroom import KnownCapacity
from vllm_rollout.capacity.model import Capacity
from vllm_rollout.capacity.question import question_digest
from vllm_rollout.model.deployment import Build, Deployment
from vllm_rollout.model.errors import RolloutError
from vllm_rollout.platform.reader import ReleaseReader, StoreReader
from vllm_rollout.platform.writer import Store
from vllm_rollout.policy import Policy


def keep_capacity(
    store: Store,
    deployment: Deployment,
    build: Build,
    capacity: Capacity,
    *,
    policy: Policy,
    replicas: int,
    found: datetime,
) -> None:
    """Keep the capacity of `build` in the place of any that was found before."""
    key = _key(deployment, build)
    known = store.read(key)
    value: dict[str, Any] = {
        "lower": capacity.lower,
        "upper": capacity.upper if math.isfinite(capacity.upper) else None,
        "confidence": capacity.confidence,
        "found": found.isoformat(),
        "question": question_digest(policy, deployment.environment, replicas),
    }
    store.write(key, value, expect=known.version if known else None)


def capacity_on_record(
    platform: ReleaseReader | None, deployment: Deployment, policy: Policy
) -> KnownCapacity | None:
    """The capacity of what the deployment runs now; None where none is known, or nobody can say."""
    if platform is None:
        return None
    try:
        history = platform.history(deployment)
        if not history or not history[-1].complete:
            return None
        return known_capacity(
            platform.store,
            deployment,
            history[-1].build,
            policy=policy,
            replicas=history[-1].capacity,
        )
    except RolloutError:
        return None  # headroom is shown beside a verdict, and decides nothing


def known_capacity(
    store: StoreReader, deployment: Deployment, build: Build, *, policy: Policy, replicas: int
) -> KnownCapacity | None:
    """The capacity on record of `build`; None where there is none that can be read."""
    entry = store.read(_key(deployment, build))
    if entry is None:
        return None
    try:
        upper = entry.value["upper"]
        return KnownCapacity(
            lower=float(entry.value["lower"]),
            upper=math.inf if upper is None else float(upper),
            confidence=float(entry.value["confidence"]),
            found=datetime.fromisoformat(entry.value["found"]),
            same_question=entry.value["question"]
            == question_digest(policy, deployment.environment, replicas),
        )
    except (KeyError, TypeError, ValueError):
        return None


def _key(deployment: Deployment, build: Build) -> str:
    return f"capacity/{deployment.release}/{build.digest.removeprefix('sha256:')}"
