"""Inheritance: an environment runs the gates before it, and a model may differ."""

from collections.abc import Callable

from vllm_rollout.policy import Policy

Load = Callable[..., Policy]


def test_the_defaults_run_the_workflows_gates(load: Load) -> None:
    policy = load()
    development = {"pods", "health", "inference", "response_time"}
    staging = development | {"latency", "error_rate", "load_capacity", "outputs"}
    assert set(policy.environments["development"].gates.enabled) == development
    assert set(policy.environments["staging"].gates.enabled) == staging
    assert set(policy.environments["production"].gates.enabled) == staging - {"load_capacity"} | {
        "smoke",
        "live_metrics",
    }
    assert "live_metrics" not in policy.gates_of("production")  # there is no Prometheus
    assert "live_metrics" in load("prometheus: {url: 'http://p:9090'}").gates_of("production")
    assert list(policy.environments) == list(policy.order)


def test_an_environment_inherits_gates_and_load_but_neither_replicas_nor_soak(load: Load) -> None:
    policy = load("environments: {staging: {load: {seed: 7}, replicas: 2}}")
    staging, production = policy.environments["staging"], policy.environments["production"]
    assert staging.load.rate == 10
    assert (production.load.seed, production.load.rate) == (7, 5)
    assert production.gates.latency == staging.gates.latency
    assert (staging.replicas, production.replicas) == (2, 4)
    assert staging.soak is not None
    assert production.soak is None


def test_off_leaves_a_gate_out_from_there_on(load: Load) -> None:
    policy = load("environments: {staging: {gates: {latency: off, pods: null}, soak: off}}")
    assert policy.environments["development"].gates.pods is not None
    for name in ("staging", "production"):
        assert policy.environments[name].gates.latency is None
        assert policy.environments[name].gates.pods is None
    assert policy.environments["staging"].soak is None


def test_a_block_brings_a_gate_back_with_the_numbers_it_had(load: Load) -> None:
    policy = load(
        "environments:\n"
        "  staging: {gates: {latency: off, error_rate: off}}\n"
        "  production: {gates: {latency: {limit: 2s}, error_rate: on, load_capacity: {}}}\n"
    )
    gates = policy.environments["production"].gates
    assert gates.latency is not None
    assert gates.error_rate is not None
    assert gates.load_capacity is not None
    assert (gates.latency.percentile, gates.latency.limit_seconds) == (95, 2)
    assert gates.error_rate.limit == 0.001
    assert gates.load_capacity.expected_rate == 10


def test_the_smoke_tests_url_can_be_off(load: Load) -> None:
    for off in ("off", "null"):
        policy = load(f"environments: {{production: {{gates: {{smoke: {{url: {off}}}}}}}}}")
        smoke = policy.environments["production"].gates.smoke
        assert smoke is not None
        assert (smoke.url, smoke.prompt) == (None, "Test")


def test_an_added_environment_stands_in_the_chain_where_order_puts_it(load: Load) -> None:
    policy = load(
        "order: [development, staging, canary, production]\n"
        "environments: {canary: {replicas: 1, gates: {latency: {limit: 2s}}}}\n"
    )
    assert policy.previous("production") == "canary"
    latency = policy.environments["production"].gates.latency
    assert latency is not None
    assert latency.limit_seconds == 2


def test_a_models_block_counts_for_that_model_alone(load: Load) -> None:
    policy = load(
        "models:\n"
        "  big:\n"
        "    parameters: 70\n"
        "    windows: {days: [tuesday]}\n"
        "    environments: {staging: {gates: {latency: {limit: 5s}, response_time: off}}}\n"
        "  other: {deploy_timeout: 1h}\n"
    )
    big, small = policy.for_model("big"), policy.for_model("small-7b")
    for name in ("staging", "production"):
        gates = big.environments[name].gates
        assert gates.latency is not None
        assert (gates.latency.limit_seconds, gates.latency.percentile) == (5, 95)
        assert gates.response_time is None
    assert big.windows.days == ("tuesday",)
    assert big.windows.hours == policy.windows.hours
    assert big.parameters("big") == 70
    assert list(big.models) == ["big"]
    assert small.environments == policy.environments
    assert small.models == {}
    assert policy.for_model("other").deploy_timeout_seconds == 3600
    assert big.for_model("big") == big
