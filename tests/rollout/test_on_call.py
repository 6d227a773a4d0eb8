"""People on call are told who rolls out what, and paged where a person is needed, until its end."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from support.recorder import LOST, Recorder, recorder

from vllm_rollout.policy import load_policy
from vllm_rollout.rollout.notifier import Notifier

KEY = "the-routing-key"
NEEDS = "vllm-rollout/llama-2-7b/production"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorder]:
    monkeypatch.setenv("ON_CALL_KEY", KEY)
    with recorder() as found:
        yield found


def run(server: Recorder, kind: str, **more: Any) -> Notifier:
    pause = more.pop("pause", lambda _seconds: False)
    channel = {"name": "pager", "kind": kind, "key_env": "ON_CALL_KEY", "url": server.url, **more}
    changes = {
        "notifications.channels": [channel], "notifications.attempts": 3,
        "notifications.timeout": "20s", "notifications.deadline": "60s",
    }  # fmt: skip
    return Notifier(
        load_policy(None, overrides=changes).notifications,
        model="llama-2-7b",
        environment="production",
        run_id="run-1",
        who="ada",
        reason="new model",
        now=lambda: datetime(2026, 11, 18, 10, tzinfo=UTC),
        pause=pause,
    )


def tell(messages: Notifier, *kinds: str) -> list[str]:
    for kind in kinds:
        messages.tell(kind, f"text of {kind}", build=f"sha256:{'a' * 64}")
    return messages.undelivered(wait=True)


def test_pagerduty_is_told_of_changes_and_paged_until_the_end(server: Recorder) -> None:
    messages = run(server, "pagerduty")

    told = ("promotion", "step", "waiting", "blind", "seen", "kept", "settled", "rollback")
    assert tell(messages, *told, "rollback-failed", "rolled-back", "ended") == []

    assert {each.body.pop("routing_key") for each in server.sent} == {KEY}
    done = [
        (each.path, each.body.get("event_action"), each.body.get("dedup_key"))
        for each in server.sent
    ]
    assert done == [
        ("/v2/change/enqueue", None, None),
        ("/v2/enqueue", "trigger", f"{NEEDS}/blind"),
        ("/v2/enqueue", "resolve", f"{NEEDS}/blind"),
        ("/v2/enqueue", "trigger", f"{NEEDS}/kept"),
        ("/v2/enqueue", "resolve", f"{NEEDS}/kept"),
        ("/v2/change/enqueue", None, None),
        ("/v2/enqueue", "trigger", f"{NEEDS}/rollback-failed"),
        ("/v2/enqueue", "resolve", f"{NEEDS}/rollback-failed"),
    ]
    change, paged = server.sent[0].body["payload"], server.sent[6].body["payload"]
    summary = "Promotion of llama-2-7b to production begins (build aaaaaaaaaaaa), by ada"
    assert change["summary"] == summary
    assert change["timestamp"] == "2026-11-18T10:00:00+00:00"
    assert change["custom_details"]["reason"] == "new model"
    assert (paged["severity"], paged["source"]) == ("critical", "vllm-rollout")
    assert "text of rollback-failed" in paged["custom_details"]["text"]


def test_opsgenie_has_one_alert_by_its_alias_until_the_end(server: Recorder) -> None:
    messages = run(server, "opsgenie")

    assert tell(messages, "promotion", "kept", "settled", "rollback-failed", "rolled-back") == []

    assert {each.headers["authorization"] for each in server.sent} == {f"GenieKey {KEY}"}
    opened = [each.body for each in server.sent if each.path == "/v2/alerts"]
    assert [(each["alias"].removeprefix(f"{NEEDS}/"), each["priority"]) for each in opened] == [
        ("change", "P5"),
        ("kept", "P2"),
        ("rollback-failed", "P1"),
    ]
    assert all(len(each["message"]) <= 130 for each in opened)
    assert "by ada" in opened[0]["message"]
    closed = [each.path for each in server.sent if each.path != "/v2/alerts"]
    alias = "vllm-rollout%2Fllama-2-7b%2Fproduction%2F"
    assert closed == [
        f"/v2/alerts/{alias}{name}/close?identifierType=alias"
        for name in ("kept", "change", "rollback-failed")
    ]


def test_what_is_not_open_is_closed_without_a_complaint(server: Recorder) -> None:
    server.script = [404, 404]
    assert tell(run(server, "opsgenie"), "promoted") == []
    assert len(server.sent) == 2


@pytest.mark.parametrize("status", [LOST, 429, 503])
def test_an_alert_is_not_given_up_for_a_newer_message(
    server: Recorder, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []
    monkeypatch.setattr(
        "vllm_rollout.rollout.notifier._wait", lambda seconds: bool(waited.append(seconds))
    )
    server.script = [status]
    server.hold.clear()
    messages = run(server, "pagerduty", pause=None)
    for kind in ("rollback-failed", "rolled-back"):
        messages.tell(kind, "")
    server.hold.set()

    assert messages.undelivered(wait=True) == []

    trigger, again, resolve = server.sent
    assert trigger.body == again.body
    assert resolve.body["event_action"] == "resolve"
    assert len(waited) == 1


def test_what_pages_nobody_gives_way_to_what_does(server: Recorder) -> None:
    server.script = [503]
    server.hold.clear()
    messages = run(server, "pagerduty", pause=None)
    for kind in ("rollback", "rollback-failed"):
        messages.tell(kind, "")
    server.hold.set()

    (late,) = messages.undelivered(wait=True)

    assert late.startswith("rollback to pager: HTTP 503")
    assert [each.path for each in server.sent] == ["/v2/change/enqueue", "/v2/enqueue"]


def test_who_is_told_of_changes_alone_is_not_paged_and_no_key_is_said(server: Recorder) -> None:
    server.script = [400]
    messages = run(server, "pagerduty", messages=["promotion"])

    failed = tell(messages, "kept", "rollback-failed", "promotion", "promoted")

    assert failed == ["promotion to pager: HTTP 400"]
    assert [each.path for each in server.sent] == ["/v2/change/enqueue"]


def test_messages_that_have_no_end_are_refused(server: Recorder) -> None:
    with pytest.raises(Exception, match=r"opsgenie takes promotion, .*; not sign-off"):
        run(server, "opsgenie", messages=["sign-off"])
