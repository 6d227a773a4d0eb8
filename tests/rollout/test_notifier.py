"""Messages reach people by a real HTTP server, and never hold anything up when they do not."""

import json
import ssl
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st

from vllm_rollout.policy import load_policy
from vllm_rollout.policy.notifications import MessageKind, Notifications
from vllm_rollout.rollout.audit_log import DecisionKind
from vllm_rollout.rollout.delivery import (
    HEADER,
    is_genuine,
    sign,
    signature_headers,
    verify_webhook,
)
from vllm_rollout.rollout.notification_format import Message
from vllm_rollout.rollout.notifier import Notifier

SECRET_PATH = "/services/T000/B000/very-secret-path"


@dataclass
class Receiver:
    """A server that keeps what it is sent and answers with `statuses`, the last one for good."""

    url: str = ""
    statuses: list[int] = field(default_factory=lambda: [200])
    requests: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    hold: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.hold.set()


@pytest.fixture
def receiver(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Receiver]:
    found = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            found.requests.append((dict(self.headers), body))
            found.hold.wait()
            status = found.statuses.pop(0) if len(found.statuses) > 1 else found.statuses[0]
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    scheme = "http"
    if getattr(request, "param", "") == "tls":
        authority = trustme.CA()
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        authority.issue_cert("127.0.0.1").configure_cert(context)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
        scheme = "https"
    found.url = f"{scheme}://127.0.0.1:{server.server_port}{SECRET_PATH}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield found
    found.hold.set()
    server.shutdown()
    thread.join()
    server.server_close()


def rules(**channel: Any) -> Notifications:
    return load_policy(
        None,
        overrides={
            "notifications.channels": [{"name": "team", **channel}],
            "notifications.timeout": "5s",
            "notifications.deadline": "30s",
            "notifications.attempts": 3,
        },
    ).notifications


def notifier(found: Notifications) -> Notifier:
    return Notifier(
        found,
        model="llama-2-7b",
        environment="production",
        run_id="run-1",
        who="alice",
        reason="new model",
        now=lambda: datetime(2026, 11, 18, 10, tzinfo=UTC),
    )


@pytest.fixture
def url_in_environment(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEAM_HOOK", receiver.url)
    monkeypatch.setenv("TEAM_SIGNATURE", "shared with the receiver")


HOSTILE = "P95 latency: 7 s <!channel> & <https://evil|click> **bold**"


@pytest.mark.usefixtures("url_in_environment")
def test_slack_gets_text_in_which_nothing_that_was_said_becomes_a_mention(
    receiver: Receiver,
) -> None:
    sender = notifier(rules(kind="slack", url_env="TEAM_HOOK"))

    sender.tell(MessageKind.ROLLED_BACK, HOSTILE)

    assert sender.close() == []
    ((_, body),) = receiver.requests
    message = json.loads(body)
    text = message["blocks"][0]["text"]["text"]
    assert message["text"] == "llama-2-7b in production is rolled back"
    assert "7 s &lt;!channel&gt; &amp; &lt;https://evil|click&gt;" in text
    assert "Run run-1 by alice: new model" in text


@pytest.mark.usefixtures("url_in_environment")
def test_teams_gets_an_adaptive_card_of_plain_text_runs(receiver: Receiver) -> None:
    sender = notifier(rules(kind="teams", url_env="TEAM_HOOK"))

    sender.tell(MessageKind.PROMOTION, HOSTILE, build="0123456789ab")

    assert sender.close() == []
    (attachment,) = json.loads(receiver.requests[0][1])["attachments"]
    assert attachment["contentType"] == "application/vnd.microsoft.card.adaptive"
    body = attachment["content"]["body"]
    assert {block["type"] for block in body} == {"RichTextBlock"}  # no Markdown is read in these
    lines = [run["text"] for block in body for run in block["inlines"]]
    assert lines[:3] == [
        "Promotion of llama-2-7b to production begins",
        HOSTILE,
        "Build: 0123456789ab",
    ]


@pytest.mark.usefixtures("url_in_environment")
def test_a_webhook_is_signed_over_body_and_time(receiver: Receiver) -> None:
    sender = notifier(rules(kind="webhook", url_env="TEAM_HOOK", secret_env="TEAM_SIGNATURE"))

    sender.tell(MessageKind.ROLLBACK_FAILED, "it does not serve")

    assert sender.close() == []
    ((headers, body),) = receiver.requests
    key, sent = b"shared with the receiver", headers[HEADER]
    at = int(sent.split(",")[0].removeprefix("t="))
    assert is_genuine(sent, body, key, now_seconds=at + 10)
    assert not is_genuine(sent, body + b" ", key, now_seconds=at)
    assert not is_genuine(sent, body, b"another key", now_seconds=at)
    assert not is_genuine(sent, body, key, now_seconds=at + 301)
    standard, secret = partial(verify_webhook, headers), key.decode()
    assert standard(body, secret, now_seconds=at + 10)
    assert not standard(body + b" ", secret, now_seconds=at)
    assert not standard(body, "another key", now_seconds=at)
    assert not standard(body, secret, now_seconds=at + 301)
    told = json.loads(body)
    assert (told["kind"], told["model"], told["run_id"]) == (
        "rollback-failed",
        "llama-2-7b",
        "run-1",
    )


@given(st.text(max_size=120))
def test_no_other_text_is_a_genuine_signature(header: str) -> None:
    right = sign(b"body", b"key", at_seconds=1000)
    assert is_genuine(right, b"body", b"key", now_seconds=1000)
    assert header == right or not is_genuine(header, b"body", b"key", now_seconds=1000)
    signed = signature_headers(b"body", "key", message_id="msg_1", at_seconds=1000)
    assert verify_webhook(signed, b"body", "key", now_seconds=1000)
    for name in ("webhook-id", "webhook-timestamp", "webhook-signature"):
        other = signed | {name: header}
        assert other == signed or not verify_webhook(other, b"body", "key", now_seconds=1000)


def test_signatures_are_those_of_the_standards_own_test_vector() -> None:
    secret, body = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", b'{"test": 2432232314}'
    message_id, at = "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330

    headers = signature_headers(body, secret, message_id=message_id, at_seconds=at)

    expected = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    assert headers["webhook-signature"] == expected
    assert (headers["webhook-id"], headers["webhook-timestamp"]) == (message_id, str(at))
    several = "v1,Ceo5qEr07ixe2NLpvHk3FH9bwy/WavXrAFQ/9tdO6mc= v2,x"
    rotated = headers | {"webhook-signature": f"{several} {expected}"}
    assert verify_webhook(rotated, body, secret, now_seconds=at)
    assert not verify_webhook(
        headers | {"webhook-signature": several}, body, secret, now_seconds=at
    )


@pytest.mark.usefixtures("url_in_environment")
def test_each_attempt_to_deliver_has_the_same_message_id(receiver: Receiver) -> None:
    receiver.statuses = [503, 200]
    sender = notifier(rules(kind="webhook", url_env="TEAM_HOOK", secret_env="TEAM_SIGNATURE"))

    sender.tell(MessageKind.ROLLBACK_FAILED, "it does not serve")

    assert sender.close() == []
    first, second = [headers["webhook-id"] for headers, _ in receiver.requests]
    assert first == second


@pytest.mark.usefixtures("url_in_environment")
def test_a_signing_key_that_is_no_base64_sends_nothing(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEAM_SIGNATURE", "whsec_not*base64")
    sender = notifier(rules(kind="webhook", url_env="TEAM_HOOK", secret_env="TEAM_SIGNATURE"))

    sender.tell(MessageKind.ROLLBACK_FAILED, "it does not serve")

    (failure,) = sender.close()
    assert "no base64 follows" in failure
    assert "not*base64" not in failure
    assert receiver.requests == []


@pytest.mark.usefixtures("url_in_environment")
@pytest.mark.parametrize(
    ("statuses", "attempts", "failure"),
    [
        ([503, 429, 200], 3, ""),
        ([500], 3, "HTTP 500"),
        ([404], 1, "HTTP 404"),
        ([302], 1, "HTTP 302"),
    ],
    ids=["tried again until it is taken", "given up", "refused", "not followed elsewhere"],
)
def test_what_is_not_taken_is_tried_again_where_that_may_help(
    receiver: Receiver, statuses: list[int], attempts: int, failure: str
) -> None:
    receiver.statuses = statuses
    sender = notifier(rules(kind="slack", url_env="TEAM_HOOK"))

    sender.tell(MessageKind.PROMOTED, "all is well")

    failed = sender.close()
    assert failed == ([f"promoted to team: {failure}"] if failure else [])
    assert len(receiver.requests) == attempts


@pytest.mark.usefixtures("url_in_environment")
def test_a_receiver_that_does_not_answer_holds_nobody_up(receiver: Receiver) -> None:
    receiver.hold.clear()
    slow = rules(kind="slack", url_env="TEAM_HOOK").model_copy(
        update={"deadline": rules(kind="slack", url_env="TEAM_HOOK").deadline / 300}
    )
    sender = notifier(slow)

    sender.tell(MessageKind.ROLLBACK, "P95 latency")  # returns with the receiver still silent
    sender.tell(MessageKind.ROLLED_BACK, "revision 1 serves")

    assert sender.close() == [
        "rollback to team: not delivered in time; it may still arrive",
        "rolled-back to team: not delivered in time; it may still arrive",
    ]


@pytest.mark.parametrize("receiver", ["tls"], indirect=True)
@pytest.mark.usefixtures("url_in_environment")
def test_a_certificate_is_checked(receiver: Receiver, tmp_path: Path) -> None:
    found = rules(kind="slack", url_env="TEAM_HOOK")
    trusting = found.model_copy(update={"ca_file": str(tmp_path / "ca.pem")})

    for taken, expected in ((found, False), (trusting, True)):
        sender = notifier(taken)
        sender.tell(MessageKind.PROMOTION, "hello")
        assert (sender.close() == []) is expected
    assert len(receiver.requests) == 1


@pytest.mark.usefixtures("url_in_environment")
@pytest.mark.parametrize(
    "spoil",
    [
        lambda patch: patch.delenv("TEAM_HOOK"),
        lambda patch: patch.setenv("TEAM_HOOK", f"ftp://127.0.0.1{SECRET_PATH}"),
        lambda patch: patch.setenv("TEAM_HOOK", f"http://[127.0.0.1{SECRET_PATH}"),
        lambda patch: patch.setenv("TEAM_HOOK", f"http://127.0.0.1:9{SECRET_PATH}"),
    ],
    ids=["not set", "no HTTP", "no URL", "nobody listens"],
)
def test_a_failure_is_said_and_never_the_url(
    spoil: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch)
    sender = notifier(rules(kind="slack", url_env="TEAM_HOOK"))

    sender.tell(MessageKind.PROMOTION, "hello")

    (failure,) = sender.close()
    assert failure.startswith("promotion to team: ")
    assert "secret" not in failure
    assert "127.0.0.1" not in failure


def test_a_url_is_read_from_a_file_and_only_the_kinds_asked_for_are_sent(
    receiver: Receiver, tmp_path: Path
) -> None:
    (tmp_path / "url").write_text(receiver.url + "\n")
    sender = notifier(
        rules(kind="webhook", url_file=str(tmp_path / "url"), messages=["rollback-failed"])
    )

    sender.tell(MessageKind.PROMOTED, "all is well")
    sender.tell(MessageKind.ROLLBACK_FAILED, "nothing is")

    assert sender.close() == []
    assert [json.loads(body)["text"] for _, body in receiver.requests] == ["nothing is"]


@pytest.mark.usefixtures("url_in_environment")
@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("<!here> {{ model }}: {{ text }}", "<!here> llama-2-7b: a &lt;b&gt;"),
        ("{{ missing }}", None),
        ("{{ ''.__class__.__mro__ }}", None),
        ("{% for", None),
    ],
    ids=["the team's own", "unknown name", "out of the sandbox", "broken"],
)
def test_a_template_of_the_teams_own_is_sandboxed(
    receiver: Receiver, tmp_path: Path, template: str, text: str | None
) -> None:
    (tmp_path / "own.jinja").write_text(template)
    sender = notifier(
        rules(kind="slack", url_env="TEAM_HOOK", template=str(tmp_path / "own.jinja"))
    )

    sender.tell(MessageKind.WAITING, "a <b>")

    failed = sender.close()
    sent = [json.loads(body)["blocks"][0]["text"]["text"] for _, body in receiver.requests]
    assert sent == ([] if text is None else [text])
    assert bool(failed) is (text is None)


def test_a_command_reads_the_message_from_its_input(tmp_path: Path) -> None:
    save = "import pathlib, sys; pathlib.Path(sys.argv[1]).write_text(sys.stdin.read())"
    command = [sys.executable, "-c", save, str(tmp_path / "status.json")]
    sender = notifier(rules(kind="command", command=command))

    sender.tell(MessageKind.PROMOTION, "maintenance begins")

    assert sender.close() == []
    assert json.loads((tmp_path / "status.json").read_text())["text"] == "maintenance begins"


def test_a_command_that_fails_is_said(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "raise SystemExit('the status page is closed')"]
    sender = notifier(rules(kind="command", command=command))

    sender.tell(MessageKind.PROMOTION, "maintenance begins")

    assert sender.close() == [
        "promotion to team: its command ended with 1: the status page is closed"
    ]


def test_every_decision_and_every_kind_can_be_told() -> None:
    assert {kind.value for kind in DecisionKind} <= {kind.value for kind in MessageKind}
    for kind in MessageKind:
        about = {
            "model": "m",
            "environment": "e",
            "text": "",
            "run_id": "",
            "who": "",
            "reason": "",
        }
        at = datetime(2026, 11, 18, tzinfo=UTC)
        assert Message(kind=kind, build="", at=at, **about).headline
