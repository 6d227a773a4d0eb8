"""The policy's own answers: ramp steps, model sizes, environment names, its digest."""

from collections.abc import Callable
from datetime import UTC, timedelta

import pytest

from vllm_rollout.model.errors import UsageError
from vllm_rollout.policy import Policy, RampStep

Load = Callable[..., Policy]


@pytest.mark.parametrize(
    ("step", "capacity", "replicas"),
    [
        ({"share": "50%"}, 4, 2),
        ({"share": "50%"}, 3, 2),
        ({"share": "50%"}, 1, 1),
        ({"share": "1%"}, 4, 1),
        ({"share": "7%"}, 100, 7),
        ({"share": "100%"}, 7, 7),
        ({"replicas": 1}, 4, 1),
        ({"replicas": 5}, 4, 4),
    ],
)
def test_a_ramp_step_is_rounded_up_and_stays_within_the_release(
    step: dict[str, object], capacity: int, replicas: int
) -> None:
    assert RampStep.model_validate({**step, "hold": "1h"}).replicas_of(capacity) == replicas


def test_nothing_cannot_be_ramped() -> None:
    with pytest.raises(ValueError, match="0 replicas"):
        RampStep.model_validate({"share": "50%", "hold": "0s"}).replicas_of(0)


def test_an_unknown_environment_is_refused_with_the_nearest_and_all(load: Load) -> None:
    policy = load()
    with pytest.raises(UsageError, match="'stagin'; did you mean 'staging'") as caught:
        policy.environment("stagin")
    assert "development, staging, production" in caught.value.remedy
    with pytest.raises(UsageError):
        policy.previous("qa")


def test_the_order_says_what_came_before(load: Load) -> None:
    policy = load()
    assert policy.previous("development") is None
    assert policy.previous("production") == "staging"
    assert policy.environment("staging") is policy.environments["staging"]


@pytest.mark.parametrize(
    ("model", "billions"),
    [
        ("llama-2-7b", 7),
        ("llama-2-70b-chat", 70),
        ("qwen-1.5b", 1.5),
        ("mixtral-8x7b", 56),
        ("qwen3-235b-a22b", 235),
        ("gpt-2", None),
        ("web-7bit", None),
    ],
)
def test_a_models_name_tells_its_size(load: Load, model: str, billions: float | None) -> None:
    assert load().parameters(model) == billions


def test_the_startup_threshold_is_the_first_row_that_fits_and_unknown_sizes_have_none(
    load: Load,
) -> None:
    policy = load("models: {llama-2-7b: {parameters: 14}, plain: {}}")
    thresholds = [policy.startup_failure_threshold(size) for size in (7, 13, 13.1, 70, 71, None)]
    assert thresholds == [20, 20, 40, 40, None, None]
    assert policy.startup_failure_threshold(policy.parameters("llama-2-7b")) == 40
    assert policy.parameters("plain") is None


def test_durations_are_seconds_where_a_gate_needs_them(load: Load) -> None:
    policy = load()
    production = policy.environments["production"]
    assert production.gates.smoke is not None
    assert production.gates.smoke.timeout_seconds == 60
    assert production.load.warmup_seconds == 10
    assert [step.hold.total_seconds() for step in policy.ramp] == [3600, 3600, 0]
    assert policy.triggers.latency.above_seconds == 6
    assert policy.triggers.outage.for_seconds == 30
    assert policy.watch.slo.within_seconds == 300
    assert policy.windows.zone is UTC


def test_a_drain_is_as_long_as_any_answer_may_take_unless_it_is_set(load: Load) -> None:
    assert load().drain == timedelta(minutes=1)
    longer = {"environments.staging.load.timeout": "5m"}
    assert load(**longer).drain == timedelta(minutes=5)
    of_a_model = {"models": {"a": {"environments": {"staging": {"load": {"timeout": "7m"}}}}}}
    assert load(**of_a_model).drain == timedelta(minutes=7)
    assert load(**longer, **{"local.drain": "10s"}).drain == timedelta(seconds=10)


def test_the_digest_is_of_the_rules_and_not_of_how_they_were_written(load: Load) -> None:
    default = load()
    assert load("deploy_timeout: at least 900s\nconfidence: 95.0%").digest == default.digest
    assert load("deploy_timeout: 15m").digest != default.digest
    other = load("models: {other: {confidence: 99%}}")
    assert other.for_model("llama-2-7b").digest == default.digest
    assert other.for_model("other").digest != default.digest


def test_a_policy_cannot_be_changed_after_loading(load: Load) -> None:
    with pytest.raises(ValueError, match="frozen"):
        load().confidence = 0.5  # type: ignore[misc]


def test_one_machine_is_checked_for_gpus_alone(load: Load) -> None:
    assert "gpus" in load("").preflight_of("staging")
    assert load("platform: local").preflight_of("staging") == ()
    machine = load("platform: local\nlocal: {gpus: [0, MIG-a]}")
    assert machine.local.gpus == ("0", "MIG-a")
    assert machine.preflight_of("staging") == ("gpus",)


@pytest.mark.parametrize("gpus", ["2", "[]", "[a b]", "['0,1']", "[0, 0]", "all"])
def test_gpus_are_named_one_by_one(load: Load, gpus: str) -> None:
    with pytest.raises(UsageError, match=r"local\.gpus: (must be auto|has 0 more than once)"):
        load(f"local: {{gpus: {gpus}}}")
