"""The model that a command line names, and wrong weights behind the right name."""

import pytest

from vllm_rollout.judge import Outcome
from vllm_rollout.judge.served_model import model_named_by, root_verdict
from vllm_rollout.model import text
from vllm_rollout.model.observation import ServedModel, ServedModels


@pytest.mark.parametrize(
    ("command", "model"),
    [
        (["vllm", "serve", "/models/llama", "--port", "8000"], "/models/llama"),
        (["/usr/bin/vllm", "serve", "a/b", "--model", "other"], "a/b"),
        (["python3", "-m", "vllm.entrypoints.openai.api_server", "--model=a/b"], "a/b"),
        (["x", "--model", "a", "--model", "b"], "b"),
        (["vllm", "serve", "--config", "/etc/vllm.yaml"], None),
        (["bash", "-c", "exec vllm serve 'a/b' --port 8000"], "a/b"),
        (["sh", "-ec", "vllm serve $MODEL"], None),
        (["sh", "-c", "vllm serve 'a"], None),
        (["sh", "/run.sh"], None),
        ([], None),
    ],
)
def test_the_model_is_read_where_vllm_would_read_it(command: list[str], model: str | None) -> None:
    assert model_named_by(command) == model


def test_wrong_weights_behind_the_right_name_fail_and_name_both() -> None:
    verdict = root_verdict("llama-2-7b", "/models/mistral", [["vllm", "serve", "/models/llama/"]])

    assert verdict is not None
    assert verdict.outcome is Outcome.FAIL
    assert "wrong weights behind the right name" in verdict.reason
    assert "/models/mistral" in verdict.reason
    assert "/models/llama" in verdict.reason


@pytest.mark.parametrize(
    ("root", "command", "passes"),
    [
        ("/models/llama", ["vllm", "serve", "/models/llama/"], True),
        ("", ["vllm", "serve", "a/b"], None),
        ("llama-2-7b", ["vllm", "serve", "a/b"], None),  # a gateway repeats the name
        ("a/b", ["run.sh"], None),
    ],
)
def test_what_is_not_known_is_not_compared(
    root: str, command: list[str], passes: bool | None
) -> None:
    verdict = root_verdict("llama-2-7b", root, [command])

    assert (None if verdict is None else verdict.passed) is passes


def test_a_key_that_is_part_of_a_name_hides_no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys of a test system are plain words, and are taken out of what a server says."""
    monkeypatch.setattr(text, "_own", set())
    text.own_secret("llama-2")
    served = ServedModel(name=text.shown("llama-2-7b"), root=text.shown("meta/llama-2-7b"))
    assert "llama" not in str(served)

    listed = ServedModels(status=200, models=(served,))
    assert listed.named("llama-2-7b") is served
    assert listed.named("llama-3-7b") is None
    found = root_verdict("llama-2-7b", served.root, [["vllm", "serve", "meta/llama-2-7b"]])
    assert found is not None
    assert found.passed, found.reason
