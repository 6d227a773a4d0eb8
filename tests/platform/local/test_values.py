"""Values are checked before anything starts, and secrets stay out of them."""

import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from vllm_rollout.model.deployment import Deployment
from vllm_rollout.model.errors import UsageError
from vllm_rollout.platform.local import LocalPlatform
from vllm_rollout.platform.local.values import LocalValues, Seat, parse_values

COMMAND = ["{python}", "-m", "server", "--port", "{port}"]


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({}, "command: Field required"),
        ({"command": []}, "command"),
        ({"command": "vllm serve --port {port}"}, "command"),
        ({"command": COMMAND, "replica": 2}, "replica: Extra inputs"),
        ({"command": [*COMMAND, "{host}"]}, r"unknown placeholder \{host\}"),
        ({"command": ["{python}", "--port", "8000"]}, r"no \{port\}"),
        ({"command": ["no-such-program-here", "{port}"]}, "no-such-program-here is not a program"),
        ({"command": COMMAND, "env": {"HF_TOKEN": "hf_x"}}, "HF_TOKEN would put a secret"),
        ({"command": [*COMMAND, "--api-key", "sk-1"]}, "--api-key would put a secret"),
        ({"command": [*COMMAND, "--api-key=sk-1"]}, "--api-key would put a secret"),
    ],
)
def test_wrong_values_are_refused_with_the_place_and_no_secret(
    values: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(UsageError, match=complaint) as caught:
        parse_values(values)
    assert caught.value.remedy
    assert "sk-1" not in f"{caught.value} {caught.value.remedy}"
    assert "hf_x" not in f"{caught.value} {caught.value.remedy}"


def test_a_listed_secret_that_is_not_exported_is_named() -> None:
    values = parse_values({"command": COMMAND, "secrets": ["VLLM_API_KEY"]})
    with pytest.raises(UsageError, match="VLLM_API_KEY"):
        values.environment({"PATH": "/bin", "VLLM_API_KEY": ""})


def test_a_replica_gets_only_the_secrets_that_are_listed() -> None:
    values = parse_values(
        {"command": COMMAND, "secrets": ["VLLM_API_KEY"], "env": {"OMP_NUM_THREADS": "2"}}
    )
    inherited = {
        "PATH": "/bin",
        "TOKENIZERS_PARALLELISM": "false",
        "VLLM_API_KEY": "k",
        "GITHUB_TOKEN": "t",
        "DB_PASSWORD": "p",
    }
    assert values.environment(inherited) == {
        "PATH": "/bin",
        "TOKENIZERS_PARALLELISM": "false",
        "VLLM_API_KEY": "k",
    }
    assert values.variables(port=1, model="m") == {"OMP_NUM_THREADS": "2"}


def test_placeholders_are_filled_in_and_other_braces_left_alone() -> None:
    values = parse_values(
        {"command": [*COMMAND, "/models/{model}", '{"temperature": 0}', "$HOME;x"]}
    )
    assert values.argv(port=20001, model="llama-2-7b") == [
        *(sys.executable, "-m", "server", "--port", "20001"),
        *("/models/llama-2-7b", '{"temperature": 0}', "$HOME;x"),
    ]


@pytest.mark.parametrize(
    ("options", "gpus"),
    [
        ((), 1),
        (("--tensor-parallel-size", "4"), 4),
        (("-tp", "2", "--pipeline_parallel_size=3", "-dp=2"), 12),
        (("--tp-size=8", "--tp-size", "2"), 2),
        (("vllm serve m -tp 2 --port 1",), 2),
    ],
)
def test_a_replica_takes_the_gpus_that_its_command_divides_the_model_by(
    options: tuple[str, ...], gpus: int
) -> None:
    values = parse_values({"command": [*COMMAND, *options]})
    assert values.gpus_each == gpus
    assert values.model_copy(update={"gpus": 0}).gpus_each == 0


def test_a_parallel_size_that_is_no_number_has_a_remedy() -> None:
    values = parse_values({"command": [*COMMAND, "-tp", "$GPUS"]})
    with pytest.raises(UsageError, match=r"-tp \$GPUS does not say how many") as caught:
        values.gpus_each  # noqa: B018 - it is computed
    assert "gpus: N" in caught.value.remedy


def test_each_replica_has_variables_of_its_own() -> None:
    env = {"CACHE": "/c/{slot}", "JSON": '{"a": {b}}', "HIP_VISIBLE_DEVICES": "{gpu}"}
    values = parse_values({"command": [*COMMAND, "{gpu}"], "env": env})
    seat = Seat(3, ("1", "2"))
    assert values.names_gpus
    assert values.argv(port=1, model="m", seat=seat)[-1] == "1,2"
    assert values.variables(port=1, model="m", seat=seat) == {
        "CACHE": "/c/3",
        "JSON": '{"a": {b}}',
        "HIP_VISIBLE_DEVICES": "1,2",
        "CUDA_VISIBLE_DEVICES": "1,2",
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
    }
    none = parse_values({"command": COMMAND, "gpus": 0})
    assert none.variables(port=1, model="m", seat=Seat(0, ()))["CUDA_VISIBLE_DEVICES"] == ""
    own = parse_values({"command": COMMAND, "env": {"CUDA_VISIBLE_DEVICES": "MIG-{slot}"}})
    assert own.variables(port=1, model="m", seat=seat) == {"CUDA_VISIBLE_DEVICES": "MIG-3"}


@pytest.mark.parametrize("environment", ["staging", "production"])
def test_every_leaf_of_the_values_is_part_of_the_build(environment: str, tmp_path: Path) -> None:
    platform = LocalPlatform(tmp_path, startup_timeout=timedelta(seconds=1), max_restarts=0)
    values: dict[str, Any] = {
        "command": COMMAND,
        "env": {"VLLM_USE_V1": "1"},
        "secrets": ["VLLM_API_KEY"],
        "model_revision": "v1",
    }
    others: list[dict[str, Any]] = [
        {"command": [*COMMAND, "--quantization", "fp8"]},
        {"env": {"VLLM_USE_V1": "0"}},
        {"env": {}},
        {"secrets": []},
        {"model_revision": "v2"},
        {"gpus": 2},
    ]
    gated = platform.build(Deployment("llama-2-7b", "staging"), values)
    deployment = Deployment("llama-2-7b", environment)

    assert platform.build(deployment, values) == gated
    assert {key for other in others for key in other} == set(LocalValues.model_fields)
    assert all(platform.build(deployment, values | other) != gated for other in others)
