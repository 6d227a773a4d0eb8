"""What the policy tests share: a rollout.yaml made of text, and the lines of its refusal."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vllm_rollout.model.errors import PolicyError
from vllm_rollout.policy import Policy, load_policy


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Policy]:
    """Load `rollout.yaml` with this text (and overrides) in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def load_text(text: str | bytes = "", **overrides: Any) -> Policy:
        data = text if isinstance(text, bytes) else text.encode()
        Path("rollout.yaml").write_bytes(data)
        return load_policy(overrides=overrides)

    return load_text


@pytest.fixture
def refused(load: Callable[..., Policy]) -> Callable[..., list[str]]:
    """The lines of the error that loading this text ends in."""

    def lines(text: str | bytes = "", **overrides: Any) -> list[str]:
        with pytest.raises(PolicyError) as caught:
            load(text, **overrides)
        assert caught.value.remedy
        return str(caught.value).splitlines()

    return lines
