"""Checks of a server, where the address, the key or the name is not what it expects."""

import json
import socket
from contextlib import ExitStack
from dataclasses import replace

import pytest
from support.hostile import Script, hostile, sends

from vllm_rollout.judge import Outcome, Verdict
from vllm_rollout.model.deployment import Deployment
from vllm_rollout.model.errors import PolicyError, UsageError
from vllm_rollout.model.observation import ServedModel
from vllm_rollout.model.text import shown
from vllm_rollout.policy import load_policy
from vllm_rollout.serving import Servers, health_and_a_token, sample_inference
from vllm_rollout.settings import Settings, load_settings
from vllm_rollout.simulator.running import RunningSimulator

MODEL = "llama-2-7b"
FAST = {"ttft_seconds": "0.005", "inter_token_seconds": "0.001"}
DEPLOYMENT = Deployment(MODEL, "staging")


def settings(url: str, **overrides: object) -> Settings:
    one = {"environments.staging.replicas": 1, **overrides}
    return replace(load_settings(base_url=url), policy=load_policy(None, overrides=one))


def health(made: Settings) -> list[Verdict]:
    gate = made.policy.environments["staging"].gates.health
    assert gate is not None
    with ExitStack() as clients:
        return list(health_and_a_token(Servers.of(made, DEPLOYMENT, clients), gate))


def inference(made: Settings) -> tuple[list[Verdict], dict[str, str]]:
    gate = made.policy.environments["staging"].gates.inference
    assert gate is not None
    attached: dict[str, str] = {}
    with ExitStack() as clients:
        servers = Servers.of(made, DEPLOYMENT, clients)
        found = sample_inference(servers, gate, attached.__setitem__, stream=False)
        return list(found), attached


@pytest.mark.parametrize(
    ("key", "expected", "ours"),
    [
        (None, Outcome.INCONCLUSIVE, "is not set"),
        ("bad", Outcome.INCONCLUSIVE, "is not its own"),
        ("good", Outcome.PASS, ""),
    ],
)
def test_a_missing_or_wrong_key_is_held_against_no_build(
    key: str | None, expected: Outcome, ours: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if key is not None:
        monkeypatch.setenv("OUR_KEY", key)
    with RunningSimulator(model=MODEL, api_keys="good", **FAST) as server:
        made = settings(server.url, api_key_env="OUR_KEY")
        open_health, token = health(made)
        listed, _ = inference(made)
    assert open_health.passed
    for verdict in (token, *listed):
        assert verdict.outcome is expected
        assert ours in verdict.reason
        assert expected is Outcome.PASS or "OUR_KEY" in verdict.remedy


def test_a_redirect_names_its_target_and_is_held_against_no_build() -> None:
    moved = sends(
        b"HTTP/1.1 307 Moved\r\nLocation: https://gw.example.com/x\r\nContent-Length: 0\r\n\r\n"
    )
    with hostile(moved) as url:
        verdicts = [*health(settings(url)), *inference(settings(url))[0]]
    for verdict in verdicts:
        assert verdict.outcome is Outcome.INCONCLUSIVE
        assert "https://gw.example.com/x" in verdict.reason
        assert "--base-url" in verdict.remedy


@pytest.mark.parametrize(
    "url", ["http://server/v1", "http://server/openai/v1/", "http://server/v1/chat/completions"]
)
def test_the_path_of_the_api_is_taken_off_a_url_and_named(url: str) -> None:
    right = url.partition("/v1")[0]
    made = load_settings(base_url=url)
    assert made.base_url == right
    assert made.note == (
        f"--base-url {right}: {url.removeprefix(right)} was taken off, which the suite adds itself"
    )
    for key in ("service_url", "environments.production.gates.smoke.url"):
        with pytest.raises(PolicyError, match="end it before"):
            load_policy(None, overrides={key: "http://server/v1"})


def test_a_confidence_lower_than_the_policys_judges_nothing() -> None:
    higher = load_settings(base_url="http://h", confidence="99.5%").judged_by("llama-2-7b")
    assert higher.confidence == 0.995
    with pytest.raises(UsageError, match="lower than the policy's"):
        load_settings(base_url="http://h", confidence="90%").judged_by("llama-2-7b")
    with pytest.raises(UsageError, match="no confidence"):
        load_settings(base_url="http://h", confidence="most")


def answers(paths: dict[bytes, bytes]) -> Script:
    """Answer those paths with those bodies, and any other with 404."""

    def script(connection: socket.socket, request: bytes) -> None:
        body = paths.get(request.split()[1])
        head = b"200 OK" if body is not None else b"404 Not Found"
        whole = (head, len(body or b""), body or b"")
        connection.sendall(b"HTTP/1.1 %b\r\nContent-Length: %d\r\n\r\n%b" % whole)

    return script


def test_a_health_check_elsewhere_is_found_where_the_policy_has_it() -> None:
    with hostile(answers({b"/v2/health/live": b""})) as host:
        url = f"{host}/openai"
        first, *_ = health(settings(url))
        assert first.outcome is Outcome.FAIL
        assert "`health_path`" in first.remedy
        first, *_ = health(settings(url, health_path="/v2/health/live"))
        assert first.passed


def test_a_served_name_apart_from_the_models_own_is_asked_for() -> None:
    with pytest.raises(UsageError, match="DNS-1123") as caught:
        Deployment("Qwen/Qwen3-8B", "staging")
    assert "served_as" in caught.value.remedy
    with RunningSimulator(model="Qwen/Qwen3-8B", **FAST) as server:
        listed = inference(settings(server.url))[0][0]
        assert listed.outcome is Outcome.FAIL
        assert f"`models.{MODEL}.served_as: Qwen/Qwen3-8B`" in listed.remedy
        named = {f"models.{MODEL}.served_as": "Qwen/Qwen3-8B"}
        assert all(verdict.passed for verdict in inference(settings(server.url, **named))[0])


def test_a_served_name_is_a_model_where_no_release_is_asked_for() -> None:
    name = "meta-llama/Llama-2-7b"
    made = load_settings(base_url="http://x", models=(name, "other"))
    assert made.labels == {name: MODEL}
    assert made.policy.for_model(MODEL).served_name(MODEL) == name
    served = {"models.mine.served_as": name}
    assert load_settings(overrides=served, platform="local", models=(name,)).labels == {
        name: "mine"
    }
    assert not load_settings(platform="local", models=(name,)).labels
    for clash in ((MODEL, name), (name, "other/llama-2-7b")):
        with pytest.raises(UsageError, match="stands for another model"):
            load_settings(base_url="http://x", models=clash)
    for broken in ("a b", 'x"}', "", "a\x1b"):
        with pytest.raises((UsageError, PolicyError)):
            load_policy(None, overrides={f"models.{MODEL}.served_as": broken})


def test_what_a_server_says_of_its_model_is_shown_beside_the_gate() -> None:
    entry = {"id": MODEL, "root": "/models/a\x1b[31m", "parent": "base", "max_model_len": 4096}
    junk = {"id": "x", "root": 7, "parent": [], "max_model_len": 10**400}
    body = json.dumps({"data": [entry, junk]}).encode()
    with hostile(answers({b"/v1/models": body})) as url:
        with settings(url).client(url, DEPLOYMENT) as client:
            found = client.served_models(timeout_seconds=20)
        _, attached = inference(settings(url))
    assert found.named("x") == ServedModel(name=shown("x"))
    shown_as = f"{MODEL}, root /models/a�[31m, parent base, max_model_len 4096"
    assert attached["served model"] == shown_as


def test_thousands_of_names_are_a_short_printable_reason() -> None:
    body = json.dumps({"data": [{"id": f"\x1b[2J{i}" + "x" * 50} for i in range(5_000)]}).encode()
    with hostile(answers({b"/v1/models": body})) as url:
        reason = inference(settings(url))[0][0].reason
    assert "and 4,990 more" in reason
    assert len(reason) < 400
    assert reason.isprintable()
