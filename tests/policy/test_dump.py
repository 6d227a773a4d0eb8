"""The effective policy, written out, reads back as the same policy."""

from collections.abc import Callable

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vllm_rollout.policy import Policy, dump_policy

Load = Callable[..., Policy]

DIFFERENT = """
platform: local
order: [development, staging, canary, production]
windows: {peak_hours: [{from: 12:00, to: 13:00}], holidays: [2026-12-25], timezone: UTC}
environments:
  staging:
    gates: {latency: off, goodput: {target: 95%, itl: 100ms}}
    soak: off
    load: {traffic: {profile: [{rate: 2/s, to: 20/s, for: 5m}, {rate: 3/s, for: 1m}]}}
  production: {gates: {smoke: {url: off}}}
  canary:
    replicas: 2
    gates: {latency: {limit: 1500ms}}
    soak: {minimum: 1h, maximum: 2h, observed_by: age, grace: 0s, max_gap: 1m}
    sign_off: {valid: 24h}
notifications:
  channels:
    - {name: team, kind: slack, url_env: SLACK_WEBHOOK_URL}
    - {name: page, kind: command, command: [./page.sh], messages: [blind]}
    - {name: bus, kind: webhook, url_file: /run/url, secret_env: KEY}
    - {name: status, kind: statuspage, page_id: abc, key_env: KEY, components: [c1]}
    - name: other
      kind: http
      url_env: URL
      headers_env: {X-Token: KEY}
      open: {path: /incidents, body: "{}", id_from: data.id}
      close: {method: PATCH, path: "/incidents/{{ id }}"}
prometheus:
  gateway: {metric: istio_requests_total, labels: {le: off}, status_label: code, failed: "5.."}
ramp: [{share: 12.5%, hold: 90s}, {share: 100%, hold: 0s}]
models:
  plain: {}
  big:
    parameters: 70.6
    ramp: [{replicas: 1, hold: 2h}, {share: 100%, hold: 0s}]
    environments:
      staging:
        gates: {latency: {limit: 6s}, error_rate: off}
        soak: {minimum: 3h, maximum: 4h, observed_by: age, grace: 0s, max_gap: 1m}
      canary: {soak: off}
"""


@pytest.mark.parametrize("text", ["", DIFFERENT])
def test_a_dump_reads_back_as_the_same_policy(load: Load, text: str) -> None:
    policy = load(text)
    assert load(dump_policy(policy)) == policy
    for model in ("big", "unlisted"):
        own = policy.for_model(model)
        assert load(dump_policy(own)) == own


def test_a_dump_is_written_as_people_write_it_and_a_model_only_where_it_differs(
    load: Load,
) -> None:
    text = dump_policy(load("models: {x: {environments: {staging: {gates: {latency: off}}}}}"))
    assert "    soak:\n      minimum: 24h\n      maximum: 48h\n" in text
    assert "      load_capacity: off\n" in text
    assert "- share: 50%\n  hold: 1h\n" in text
    assert "percentile: 95\n" in text
    assert yaml.safe_load(text)["models"] == {
        "x": {
            "environments": {
                "staging": {"gates": {"latency": False}},
                "production": {"gates": {"latency": False}},
            }
        }
    }


def _with_prompt(policy: Policy, prompt: str) -> Policy:
    staging = policy.environments["staging"]
    load = staging.load.model_copy(update={"prompt": prompt})
    changed = staging.model_copy(update={"load": load})
    return policy.model_copy(update={"environments": {**policy.environments, "staging": changed}})


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25, deadline=None
)
@given(
    st.one_of(
        st.text(min_size=1),
        st.sampled_from(["1e3", "off", "16:00", "~", "=", " ", "\r\n", "a\x85\u2028b"]),
    )
)
def test_any_prompt_survives_a_dump(load: Load, prompt: str) -> None:
    text = dump_policy(_with_prompt(load(), prompt))
    assert load(text).environments["staging"].load.prompt == prompt
