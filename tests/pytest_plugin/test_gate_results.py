"""A gate's record; and what a gate run says of its deployment: what it ran, and what changed."""

import json
import math
from dataclasses import replace
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from support.simulated import FakeClock, MemoryStore, SimulatedPlatform
from support.world import STAGING

from vllm_rollout.gate_runs import change, changed_unread, identity, identity_and_differences
from vllm_rollout.judge import Outcome, Verdict, VerdictMethod
from vllm_rollout.model.evidence import GateResult
from vllm_rollout.model.observation import ServedModel, ServedModels
from vllm_rollout.model.text import shown
from vllm_rollout.pytest_plugin.gate_results import (
    GateRecord,
    deserialize_record,
    record_of,
    serialize_record,
)
from vllm_rollout.pytest_plugin.gate_selection import title_of
from vllm_rollout.pytest_plugin.verdict_recorder import VerdictRecorder
from vllm_rollout.serving import sample_inference

OLD, NEW = "sha256:" + "0" * 64, "sha256:" + "1" * 64


@pytest.fixture
def platform() -> SimulatedPlatform:
    clock = FakeClock()
    platform = SimulatedPlatform(MemoryStore(clock), clock)
    platform.deploy(STAGING, {"version": 1})
    return platform


def test_an_image_that_is_another_after_a_gate_is_a_change(platform: SimulatedPlatform) -> None:
    seen = []
    for image in (OLD, OLD, NEW):
        platform.images["staging"] = image
        seen.append(identity(platform, STAGING))  # type: ignore[arg-type]

    assert change(seen[:2]) == ""
    assert change(seen) == f"while the gates ran, images: {OLD} -> {NEW}"


def test_pods_that_are_not_ready_for_a_moment_are_no_change(platform: SimulatedPlatform) -> None:
    platform.images["staging"] = OLD
    ready = identity(platform, STAGING)  # type: ignore[arg-type]
    platform.images["staging"] = ""
    unknown = identity(platform, STAGING)  # type: ignore[arg-type]

    assert unknown["images"] == []
    assert change([ready, unknown, ready]) == ""


def test_what_could_not_be_read_is_told_from_a_change(platform: SimulatedPlatform) -> None:
    seen: dict[str, Any] = identity(platform, STAGING)  # type: ignore[arg-type]
    lost = {**identity(None, STAGING), "unknown": "no answer"}
    other = {**seen, "revision": 2}
    assert changed_unread([seen, lost, seen]) == ("no answer", True)
    assert changed_unread([seen, lost]) == ("no answer", True)
    assert changed_unread([seen, lost, other]) == ("no answer", False)
    assert changed_unread([seen, seen]) == ("", False)


def test_another_revision_is_a_change_whatever_it_runs(platform: SimulatedPlatform) -> None:
    before: dict[str, Any] = identity(platform, STAGING)  # type: ignore[arg-type]
    platform.deploy(STAGING, {"version": 2})
    after = identity(platform, STAGING)  # type: ignore[arg-type]

    assert change([before, after]).startswith("while the gates ran, revision 1 became revision 2")


def test_a_record_crosses_from_a_worker_as_json_and_is_read_once() -> None:
    verdict = Verdict(
        outcome=Outcome.FAIL,
        reason="half a pair: \ud800",
        upper=math.inf,
        method=VerdictMethod.ORDER_STATISTICS,
        percentile=95.0,
        block=3,
    )
    now = datetime(2026, 1, 1, tzinfo=UTC)
    result = GateResult(
        gate="latency", item="i", title="t", verdicts=(verdict,), started=now, duration_seconds=1.0
    )
    record = GateRecord(
        node_id="i",
        phase="call",
        deployment=STAGING,
        base_url="http://a",
        identities=[{}],
        result=result,
    )
    data: dict[str, Any] = {"gate_record": record}
    serialize_record(data)
    report = SimpleNamespace(gate_record=json.loads(json.dumps(data["gate_record"])))
    deserialize_record(report)
    kept = replace(verdict, reason="half a pair: ?")
    found = record_of(report)
    assert found == replace(record, result=replace(result, verdicts=(kept,)))
    deserialize_record(report)
    assert record_of(report) is found


def test_what_is_not_as_rendered_for_the_build_is_a_change(platform: SimulatedPlatform) -> None:
    assert "differences" not in identity_and_differences(platform, STAGING)  # type: ignore[arg-type]
    platform.differences["staging"] = ['Deployment x: image: "v:1" was rendered, "v:2" runs']
    found = identity_and_differences(platform, STAGING)  # type: ignore[arg-type]

    assert change([found, identity(platform, STAGING)]) == (  # type: ignore[arg-type]
        "what runs is not what was rendered for the build: "
        'Deployment x: image: "v:1" was rendered, "v:2" runs'
    )


def test_wrong_weights_behind_the_right_name_fail_the_inference_gate() -> None:
    model = ServedModel(name=shown("m"), root=shown("/models/mistral"))
    listed = ServedModels(status=200, models=(model,))
    client: Any = SimpleNamespace(
        model="m", key_variable="", served_models=lambda timeout_seconds: listed
    )
    gate: Any = SimpleNamespace(timeout_seconds=1)
    servers: Any = SimpleNamespace(
        address=client, model="m", commands=lambda: [("vllm", "serve", "/models/llama")]
    )

    asked = sample_inference(servers, gate, lambda *_: None, stream=False)

    assert next(asked).passed
    wrong = next(asked)
    assert wrong.outcome is Outcome.FAIL
    assert "wrong weights behind the right name" in wrong.reason


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_a_figure_that_evidence_cannot_hold_is_refused(value: float) -> None:
    record = VerdictRecorder()
    with pytest.raises(TypeError, match=r"measured of a verdict is (nan|-inf): None is for what"):
        record(Verdict(outcome=Outcome.PASS, reason="r", measured=value, limit=1.0))
    assert record.outcome is Outcome.INCONCLUSIVE


def test_a_gate_with_a_blank_docstring_has_the_modules_title_or_its_name() -> None:
    blank, told = SimpleNamespace(__doc__="  \n "), SimpleNamespace(__doc__="\n Told: so.\n More.")
    titles = [
        title_of(SimpleNamespace(function=blank, module=module, name="test_ours"))  # type: ignore[arg-type]
        for module in (told, blank)
    ]
    assert titles == ["Told: so.", "test_ours"]
