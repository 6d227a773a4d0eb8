"""The fixtures of gates, by a platform that only notes what it is asked."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vllm_rollout.model.deployment import Deployment, Revision
from vllm_rollout.model.errors import UsageError
from vllm_rollout.policy import load_policy
from vllm_rollout.pytest_plugin import fixtures
from vllm_rollout.settings import Settings


def test_values_of_the_environment_before_are_read_where_it_is() -> None:
    asked: list[Deployment] = []

    class Platform:
        def history(self, deployment: Deployment) -> Sequence[Revision]:
            asked.append(deployment)
            return ()

    policy = load_policy(None, overrides={"environments.staging.kubernetes": {"namespace": "qa"}})
    settings = Settings(
        policy=policy,
        platform=Platform(),  # type: ignore[arg-type]
        base_url=None,
        report_dir=Path("reports"),
    )
    request = SimpleNamespace(
        config=SimpleNamespace(option=SimpleNamespace(vllm_rollout={"--values": None}))
    )
    production = settings.deployment("llama-2-7b", "production")
    preflight: Any = fixtures.preflight
    with pytest.raises(UsageError, match="runs none"):
        preflight.__wrapped__(request, settings, production, policy)
    assert asked == [Deployment("llama-2-7b", "staging", "qa")]
    assert production.namespace != "qa"
