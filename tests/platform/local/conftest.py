"""Local platforms whose processes end with the test."""

from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from support.local_release import LocalRelease

from vllm_rollout.model.deployment import Deployment
from vllm_rollout.platform.local import LocalPlatform


@pytest.fixture
def make_release() -> Iterator[Callable[..., LocalRelease]]:
    """A release, not installed yet, on a platform of the given state directory."""
    made: list[LocalPlatform] = []

    def make(state_dir: Path, **settings: Any) -> LocalRelease:
        settings = {"startup_timeout": timedelta(seconds=30), "max_restarts": 1} | settings
        made.append(LocalPlatform(state_dir, **settings))
        return LocalRelease(made[-1], Deployment("llama-2-7b", "staging"))

    yield make
    for platform in made:
        platform.stop_all(timeout=timedelta(seconds=3))


@pytest.fixture
def release(make_release: Callable[..., LocalRelease], tmp_path: Path) -> LocalRelease:
    return make_release(tmp_path / "state")
