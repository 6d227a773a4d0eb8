"""Loading: every wrong policy is refused with file, line, column, key and the way out."""

from collections.abc import Callable
from pathlib import Path

import pytest

from vllm_rollout.model.errors import ExitCode, PolicyError
from vllm_rollout.policy import Override, Policy, load_policy

Refused = Callable[..., list[str]]
Load = Callable[..., Policy]

STAGING = "environments:\n  staging:\n    "


@pytest.mark.parametrize(
    ("text", "line"),
    [
        pytest.param(
            STAGING + "gates: {latency: {limt: 4s}}",
            "rollout.yaml:3:23: environments.staging.gates.latency.limt: unknown key 'limt'; "
            "did you mean 'limit'? (valid here: percentile, limit)",
            id="unknown key",
        ),
        pytest.param(
            STAGING + "gates: {latncy: {limit: 4s}}",
            "rollout.yaml:3:13: environments.staging.gates.latncy: unknown key 'latncy'; did you "
            "mean 'latency'? (valid here: pods, health, inference, response_time, outputs, "
            "latency, error_rate, goodput, load_capacity, smoke, live_metrics, "
            "gpu_memory, kv_cache, queue)",
            id="unknown gate",
        ),
        pytest.param(
            "watch: {error_spike: {fro: 1s}}",
            "rollout.yaml:1:23: watch.error_spike.fro: unknown key 'fro'; did you mean 'for'? "
            "(valid here: within, rate, for)",
            id="unknown key beside one that is a Python word",
        ),
        pytest.param(
            "ramp: [{shard: 100%, share: 100%, hold: 0s}]",
            "rollout.yaml:1:9: ramp[0].shard: unknown key 'shard'; did you mean 'share'? "
            "(valid here: replicas, share, hold)",
            id="unknown key in a list",
        ),
        pytest.param(
            STAGING + "gates: {latency: {limit: -3s}}",
            "rollout.yaml:3:30: environments.staging.gates.latency.limit: -3s is negative: write "
            "a duration as 500ms, 10s, 15m, 24h or 1h30m",
            id="negative limit",
        ),
        pytest.param(
            STAGING + "gates: {latency: {limit: 0s}}",
            "rollout.yaml:3:30: environments.staging.gates.latency.limit: must be more than zero",
            id="a limit of zero",
        ),
        pytest.param(
            STAGING + "gates: {error_rate: {limit: 0.001}}",
            "rollout.yaml:3:33: environments.staging.gates.error_rate.limit: 0.001 is a share "
            "without its % sign: write a share from 0% to 100%, as 0.1% or 50%",
            id="a fraction where a share is written in percent",
        ),
        pytest.param(
            STAGING + "load: {rate: 10}",
            "rollout.yaml:3:18: environments.staging.load.rate: 10 has no unit: write a rate as "
            "10/s, 600/m or 36000/h",
            id="bad unit",
        ),
        pytest.param(
            STAGING + "load: {arrivals: poison}",
            "rollout.yaml:3:22: environments.staging.load.arrivals: must be 'poisson' or "
            "'constant', not 'poison'; did you mean 'poisson'?",
            id="a word that is not one of the choices",
        ),
        pytest.param(
            STAGING + "load: {workers: 1.5}",
            "rollout.yaml:3:21: environments.staging.load.workers: must be a whole number, not 1.5",
            id="wrong type",
        ),
        pytest.param(
            STAGING + "gates: {pods: 3}",
            "rollout.yaml:3:19: environments.staging.gates.pods: must be a block of keys, not 3",
            id="no block",
        ),
        pytest.param(
            STAGING + "gates: {pods: }",
            "rollout.yaml:3:18: environments.staging.gates.pods: has no value: write one, or "
            "remove the key",
            id="an empty gate is not off",
        ),
        pytest.param(
            "windows: {enforce: null}",
            "rollout.yaml:1:20: windows.enforce: must be true or false, not null",
            id="null where a value is needed",
        ),
        pytest.param(
            "ramp: off",
            "rollout.yaml:1:7: ramp: must be a list, not false",
            id="only gates and soak can be off",
        ),
        pytest.param(
            "models: {x-7b: {parameters: 7, ramp: [{share: 100%}]}}",
            "rollout.yaml:1:39: models.x-7b.ramp[0].hold: is missing",
            id="missing key",
        ),
        pytest.param(
            "confidence: 99%\nconfidence: 95%",
            "rollout.yaml:2:1: confidence: is there twice; first at rollout.yaml:1:1",
            id="duplicate key",
        ),
        pytest.param(
            "confidence: [99%",
            "rollout.yaml:1:17: is not YAML: expected ',' or ']', but got '<stream end>'",
            id="YAML syntax",
        ),
        pytest.param(
            "- confidence",
            "rollout.yaml:1:1: must be a block of keys, like `namespace: system`",
            id="not a mapping",
        ),
        pytest.param(
            "models: {Llama_7b: {}}",
            "rollout.yaml:1:10: models.Llama_7b: name 'Llama_7b' is not a DNS-1123 label: Use "
            "lower-case letters, digits and inner '-', 53 characters at most, for example "
            "llama-2-7b.",
            id="a name Kubernetes would refuse",
        ),
    ],
)
def test_a_mistake_is_named_with_its_place_and_the_way_out(
    refused: Refused, text: str, line: str
) -> None:
    assert refused(text) == [line]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            STAGING + "soak: {maximum: 1h}",
            (
                "rollout.yaml:3:21: environments.staging.soak.maximum: minimum (24h) is longer "
                "than maximum (1h)"
            ),
        ),
        (
            STAGING + "load: {timeout: 2s}",
            (
                "rollout.yaml:3:21: environments.staging.load.timeout: load.timeout (2s) must be "
                "longer than gates.latency.limit (3s): a request given up earlier cannot be "
                "distinguished from one that would have met it"
            ),
        ),
        ("confidence: 50%", "rollout.yaml:1:13: confidence: must be above 50% and below 100%"),
        ("confidence: 100%", "rollout.yaml:1:13: confidence: must be above 50% and below 100%"),
        (
            "triggers: {latency: {percentile: 100}}",
            "rollout.yaml:1:34: triggers.latency.percentile: must be less than 100, not 100",
        ),
        (
            "ramp: [{share: 50%, hold: 0s}, {share: 20%, hold: 0s}, {share: 100%, hold: 0s}]",
            "rollout.yaml:1:7: ramp: each step must be greater than the one before it",
        ),
        (
            "ramp: [{replicas: 1, hold: 0s}]",
            "rollout.yaml:1:7: ramp: the last step must be share: 100%",
        ),
        (
            "ramp: [{share: 9%, hold: 0s}, {replicas: 2, hold: 0s}, {share: 100%, hold: 0s}]",
            "rollout.yaml:1:7: ramp: steps in replicas come before steps in share",
        ),
        (
            "ramp: [{replicas: 1, share: 9%, hold: 0s}, {share: 100%, hold: 0s}]",
            "rollout.yaml:1:8: ramp[0]: needs either replicas or share, and not both",
        ),
        (
            "ramp: [{replicas: 3, hold: 0s}, {share: 50%, hold: 0s}, {share: 100%, hold: 0s}]",
            "rollout.yaml:1:7: ramp: the ramp goes down: step 2 is 2 of 4 replicas, 3 came before",
        ),
        (
            "watch: {duration: 1m, error_spike: {within: 1m}}",
            (
                "rollout.yaml:1:19: watch.duration: slo.within (5m) is longer than the watch's "
                "duration (1m)"
            ),
        ),
        (
            'windows: {hours: {from: "17:00"}}',
            "rollout.yaml:1:25: windows.hours.from: from must be earlier than to",
        ),
        (
            "windows: {hours: {to: 25:00}}",
            "rollout.yaml:1:23: windows.hours.to: '25:00' is not a time of day",
        ),
        ("windows: {timezone: Mars}", "rollout.yaml:1:21: windows.timezone: 'Mars' is not a time"),
        ("windows: {days: []}", "rollout.yaml:1:17: windows.days: must not be empty"),
        (
            "windows: {days: [monday, monday]}",
            "rollout.yaml:1:17: windows.days: has monday more than once",
        ),
        (
            "windows: {holidays: [2026-02-30]}",
            "rollout.yaml:1:22: windows.holidays[0]: '2026-02-30' is not a date",
        ),
        (
            "windows: {avoid_last_days_of_month: -1}",
            "rollout.yaml:1:37: windows.avoid_last_days_of_month: must be 0 or more, not -1",
        ),
        (
            (
                "startup_probe: {thresholds: [{up_to: 70, failure_threshold: 40}, "
                "{up_to: 13, failure_threshold: 20}]}"
            ),
            "rollout.yaml:1:29: startup_probe.thresholds: up_to must grow from row to row",
        ),
        (
            "service_url: ftp://{model}",
            "rollout.yaml:1:14: service_url: 'ftp://m' is not a URL: write http://host:port",
        ),
        (
            "service_url: http://{model.__class__}",
            "rollout.yaml:1:14: service_url: 'http://{model.__class__}' may hold {model}, ",
        ),
        ("order: [development]", "rollout.yaml:1:8: order: leaves out 'staging'"),
        (
            "order: [development, stagin, staging, production]",
            (
                "rollout.yaml:1:22: order[1]: environments has no block 'stagin'; did you mean "
                "'staging'?"
            ),
        ),
        (
            "environments: {stagin: {replicas: 2}}",
            (
                "rollout.yaml:1:16: environments.stagin: order does not list this environment; did "
                "you mean 'staging'? (order: development, staging, production)"
            ),
        ),
    ],
)
def test_keys_that_contradict_each_other_are_refused_where_they_were_written(
    refused: Refused, text: str, line: str
) -> None:
    assert refused(text)[0].startswith(line)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("confidence: \x01", "rollout.yaml:1:13: holds a character YAML does not allow"),
        (b"confidence: 95%\nnamespace: \xff", "rollout.yaml:2:12: is not UTF-8 text"),
        ("[" * 2000, "rollout.yaml:1:1: is nested more than 30 deep"),
        ("ramp: &a [*a]", "is nested more than 30 deep"),
        ("ramp: [" + "1," * 20_001 + "]", "holds more than 20,000 values"),
        (b"#" * 1_000_001, "rollout.yaml:1:1: is larger than 1,000,000 bytes"),
        ("confidence: 95%\n---\nconfidence: 99%", "rollout.yaml:2:1: is not YAML"),
        ("? [a]\n: b", "rollout.yaml:1:3: a key must be plain text"),
        ("confidence: !!python/name:os.system ''", "cannot be read as tag:yaml.org,2002:python"),
    ],
)
def test_hostile_text_ends_in_a_plain_refusal(
    refused: Refused, text: str | bytes, reason: str
) -> None:
    assert any(reason in line for line in refused(text))


def test_a_secret_written_by_mistake_is_not_repeated(refused: Refused) -> None:
    lines = refused(
        "api_key_env: sk-very-secret\nservice_url: http://user:very-secret@{model}\n"
        "environments: {production: {gates: {smoke: {url: 'http://u:very-secret@router'}}}}"
    )
    assert len(lines) == 3
    assert not any("very-secret" in line for line in lines)


def test_all_mistakes_are_named_at_once_and_an_inherited_one_only_once(refused: Refused) -> None:
    lines = refused(
        """
        confidnce: 95%
        namespace:
        environments:
          development:
            load: {rate: 0/s}
          production: {replicas: 0}
        models:
          llama-2-7b: {}
        """,
        platform=Override("k8s", "--platform"),
    )
    assert [line.split(" ")[:2] for line in lines] == [
        ["rollout.yaml:2:9:", "confidnce:"],
        ["rollout.yaml:3:19:", "namespace:"],
        ["rollout.yaml:6:26:", "environments.development.load.rate:"],
        ["rollout.yaml:7:34:", "environments.production.replicas:"],
        ["--platform:", "platform:"],
    ]


def test_an_override_names_its_option(refused: Refused) -> None:
    limit = "environments.staging.gates.latency.limit"
    assert refused(**{limit: "4x"}) == [
        f"--set: {limit}: '4x' is not a duration: write a duration as 500ms, 10s, 15m, 24h or 1h30m"
    ]
    assert refused(namespace=Override("A b", "VLLM_ROLLOUT_NAMESPACE"))[0].startswith(
        "VLLM_ROLLOUT_NAMESPACE: namespace: name 'A b' is not a DNS-1123 label"
    )
    assert refused(confidence="") == ["--set: confidence: has no value"]
    assert refused(**{"a..b": "1"}) == ["--set: a..b: is not a dotted key"]


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="there is no such policy file") as caught:
        load_policy(tmp_path / "none.yaml")
    assert caught.value.exit_code is ExitCode.USAGE
    with pytest.raises(PolicyError, match="cannot be read: Is a directory"):
        load_policy(tmp_path)


def test_a_rollout_yaml_that_links_to_nowhere_does_not_mean_the_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rollout.yaml").symlink_to("gone.yaml")
    with pytest.raises(PolicyError, match=r"rollout\.yaml: there is no such policy file"):
        load_policy()


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "\ufeff", "{}"])
def test_an_empty_file_is_the_defaults(load: Load, text: str) -> None:
    assert load(text) == load_policy(Path("rollout.yaml"))
    assert load(text).confidence == 0.95


def test_options_go_over_the_file_and_the_file_over_the_defaults(load: Load) -> None:
    policy = load(
        STAGING + "gates: {latency: {limit: 2s}, error_rate: {limit: 1%}}",
        **{"environments.staging.gates.latency.limit": "4s", "watch.probes": 3},
    )
    staging = policy.environments["staging"]
    assert staging.gates.latency is not None
    assert staging.gates.latency.limit_seconds == 4
    assert staging.gates.latency.percentile == 95
    assert staging.gates.error_rate is not None
    assert staging.gates.error_rate.limit == 0.01
    assert policy.watch.probes == 3


def test_times_and_dates_need_no_quotes(load: Load) -> None:
    windows = load("windows: {hours: {from: 9:30, to: 16:00}, holidays: [2026-12-25]}").windows
    assert (windows.hours.from_.hour, windows.hours.to.hour) == (9, 16)
    assert windows.holidays[0].isoformat() == "2026-12-25"


@pytest.mark.parametrize(
    ("traffic", "said"),
    [
        ("profile: [{rate: 1/s, fro: 5m}]", "unknown key 'fro'; did you mean 'for'?"),
        ("profile: []", "profile: must not be empty"),
        ("profile: [{rate: 1/s, for: 1m}], replay: {file: a}", "either stretched or replayed"),
        ("workload: [{name: a, prompts: words, max_tokens: {median: 9}}]", "need it"),
        ("workload: [{name: a, prompts: file, max_tokens: {median: 9}}]", "needs one"),
        (
            "workload: [{name: a, prompts: file, file: a, max_tokens: {median: 9, p95: 3}}]",
            "max_tokens.p95: p95 is below the median",
        ),
    ],
)
def test_traffic_that_makes_no_load_is_refused_at_its_place(
    tmp_path: Path, traffic: str, said: str
) -> None:
    path = tmp_path / "rollout.yaml"
    path.write_text(f"environments: {{staging: {{load: {{traffic: {{{traffic}}}}}}}}}\n")
    with pytest.raises(PolicyError) as caught:
        load_policy(path)
    assert said in str(caught.value)
    assert f"{path}:1:" in str(caught.value)
