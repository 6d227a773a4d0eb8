"""Messages reach people by a real HTTP server, and never hold anything up when they do not."""

import hmac
import json
import re
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import trustme
from standardwebhooks import Webhook, WebhookVerificationError
from support.simulated import FakeClock, MemoryStore, SimulatedPlatform

from vllm_rollout.policy import load_policy
from vllm_rollout.policy.notifications import MessageKind, Notifications
from vllm_rollout.rollout.audit_log import DecisionKind
from vllm_rollout.rollout.delivery import deliver
from vllm_rollout.rollout.http_delivery import NotDeliveredError
from vllm_rollout.rollout.model_status import model_status
from vllm_rollout.rollout.notification_format import Message, rendered
from vllm_rollout.rollout.notifier import Notifier, messages_missed

SECRET_PATH = "/services/T000/B000/very-secret-path"


@dataclass
class Receiver:
    """A server that keeps what it is sent and answers with `statuses`, the last one for good."""

    url: str = ""
    statuses: list[int] = field(default_factory=lambda: [200])
    requests: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    retry_after: Callable[[], str] = lambda: ""
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
            if retry_after := found.retry_after():
                self.send_header("Retry-After", retry_after)
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


def notifier(found: Notifications, **more: Any) -> Notifier:
    """A notifier that does not wait between attempts."""
    return Notifier(
        found,
        model="llama-2-7b",
        environment="production",
        run_id="run-1",
        who="alice",
        reason="new model",
        now=lambda: datetime(2026, 11, 18, 10, tzinfo=UTC),
        **{"pause": lambda _seconds: False, **more},
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

    assert sender.undelivered(wait=True) == []
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

    assert sender.undelivered(wait=True) == []
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
@pytest.mark.parametrize(
    ("secret", "key"),
    [
        ("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"),
        ("shared with the receiver", b"shared with the receiver"),
    ],
    ids=["as the standard writes it", "any other text"],
)
def test_a_webhook_is_verified_by_the_standards_own_package(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch, secret: str, key: str | bytes
) -> None:
    monkeypatch.setenv("TEAM_SIGNATURE", secret)
    receiver.statuses = [503, 200]
    sender = notifier(rules(kind="webhook", url_env="TEAM_HOOK", secret_env="TEAM_SIGNATURE"))

    sender.tell(MessageKind.ROLLBACK_FAILED, HOSTILE)

    assert sender.undelivered(wait=True) == []
    for headers, body in receiver.requests:
        told = Webhook(key).verify(body, headers)
        assert (told["kind"], told["text"], told["run_id"]) == ("rollback-failed", HOSTILE, "run-1")
        for wrong in (body + b" ", body.replace(b"run-1", b"run-2")):
            with pytest.raises(WebhookVerificationError):
                Webhook(key).verify(wrong, headers)
        with pytest.raises(WebhookVerificationError):
            Webhook(b"another key").verify(body, headers)
        at, digest = re.fullmatch(r"t=(\d+),v1=(.*)", headers["X-Vllm-Rollout-Signature"]).groups()  # type: ignore[union-attr]
        assert digest == hmac.digest(secret.encode(), f"{at}.".encode() + body, "sha256").hex()


@pytest.mark.usefixtures("url_in_environment")
def test_each_attempt_to_deliver_has_the_same_message_id(receiver: Receiver) -> None:
    receiver.statuses = [503, 200]
    sender = notifier(rules(kind="webhook", url_env="TEAM_HOOK", secret_env="TEAM_SIGNATURE"))

    sender.tell(MessageKind.ROLLBACK_FAILED, "it does not serve")

    assert sender.undelivered(wait=True) == []
    first, second = [headers["webhook-id"] for headers, _ in receiver.requests]
    assert first == second


@pytest.mark.usefixtures("url_in_environment")
def test_a_signing_key_that_is_no_base64_sends_nothing(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEAM_SIGNATURE", "whsec_not*base64")
    sender = notifier(rules(kind="webhook", url_env="TEAM_HOOK", secret_env="TEAM_SIGNATURE"))

    sender.tell(MessageKind.ROLLBACK_FAILED, "it does not serve")

    (failure,) = sender.undelivered(wait=True)
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

    failed = sender.undelivered(wait=True)
    assert failed == ([f"promoted to team: {failure}"] if failure else [])
    assert len(receiver.requests) == attempts


class Pauses:
    """The time between attempts, which costs none."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def __call__(self, seconds: float) -> bool:
        self.seconds.append(seconds)
        return False

    def monotonic(self) -> float:
        return sum(self.seconds)


A_MESSAGE = Message(
    kind=MessageKind.ROLLBACK_FAILED,
    model="llama-2-7b",
    environment="production",
    text="it does not serve",
    run_id="run-1",
    who="alice",
    reason="",
    build="",
    at=datetime(2026, 11, 18, 10, tzinfo=UTC),
)


@pytest.mark.usefixtures("url_in_environment")
@pytest.mark.parametrize(
    ("retry_after", "pauses"),
    [
        (lambda: "", [10 / 3, 20 / 3, 40 / 3, 80 / 3]),
        (lambda: "soon", [10 / 3, 20 / 3, 40 / 3, 80 / 3]),
        (lambda: "5", [5, 45 / 7, 12.857, 25.714]),
        (lambda: formatdate(time.time() + 12, usegmt=True), [12, 12, 12, 14]),
        (lambda: "Wed, 21 Oct 2015 07:28:00 GMT", [10 / 3, 20 / 3, 40 / 3, 80 / 3]),
        (lambda: "3600", [50]),
        (lambda: "9" * 400, [50]),
    ],
    ids=["none", "nonsense", "seconds", "a date", "a date gone by", "too long", "far too long"],
)
def test_attempts_are_spread_over_the_deadline_and_heed_retry_after(
    receiver: Receiver, retry_after: Callable[[], str], pauses: list[float]
) -> None:
    receiver.statuses, receiver.retry_after = [503], retry_after
    found = rules(kind="webhook", url_env="TEAM_HOOK")
    minute = {"deadline": timedelta(minutes=1), "timeout": timedelta(seconds=10), "attempts": 5}
    found, waited = found.model_copy(update=minute), Pauses()

    with pytest.raises(NotDeliveredError, match="HTTP 503"):
        deliver(A_MESSAGE, found.channels[0], found, pause=waited, monotonic=waited.monotonic)

    assert waited.seconds == pytest.approx(pauses, abs=1.01)  # dates are in whole seconds
    assert sum(waited.seconds) == pytest.approx(50)
    assert len(receiver.requests) == len(pauses) + 1


@pytest.mark.usefixtures("url_in_environment")
def test_a_newer_message_takes_the_place_of_a_late_one_and_names_it(receiver: Receiver) -> None:
    receiver.statuses = [503, 200]
    receiver.hold.clear()
    store = MemoryStore(FakeClock())
    sender = notifier(rules(kind="webhook", url_env="TEAM_HOOK"), pause=None, store=store)
    sender.tell(MessageKind.ROLLBACK, "P95 latency")
    sender.tell(MessageKind.ROLLBACK_FAILED, "revision 1 does not come up")
    receiver.hold.set()

    assert sender.undelivered(wait=True) == ["rollback to team: HTTP 503"]

    first, second = [json.loads(body) for _, body in receiver.requests]
    (line,) = second["missed"]
    for part in ("2026-11-18 10:00:00 UTC", first["headline"], "P95 latency", "HTTP 503"):
        assert part in line
    assert second["message"].endswith(f"Not delivered before: {line}")
    assert messages_missed([store], "llama-2-7b") == {}


@pytest.mark.usefixtures("url_in_environment")
def test_what_no_message_made_up_for_is_kept_for_the_next_run(receiver: Receiver) -> None:
    receiver.statuses = [500]
    store = MemoryStore(FakeClock())
    found = rules(kind="slack", url_env="TEAM_HOOK")
    sender = notifier(found, store=store)
    sender.tell(MessageKind.ROLLBACK_FAILED, "revision 1 does not come up")
    assert sender.undelivered(wait=True) == ["rollback-failed to team: HTTP 500"]
    assert sender.undelivered(wait=True) == []
    (kept,) = messages_missed([store], "llama-2-7b")["team"]
    assert "A PERSON IS NEEDED" in kept
    platform: Any = SimulatedPlatform(store, store.clock)
    at, policy = store.clock.now(), load_policy()
    assert model_status(platform, policy, "llama-2-7b", at).undelivered == {"team": [kept]}
    assert "secret" not in str(store.entries)

    receiver.statuses = [200]
    another = notifier(found, store=store)
    another.tell(MessageKind.PROMOTED, "all is well")

    assert another.undelivered(wait=True) == []
    text = json.loads(receiver.requests[-1][1])["blocks"][0]["text"]["text"]
    assert f"Not delivered before: {kept}" in text
    assert messages_missed([store], "llama-2-7b") == {}


@pytest.mark.parametrize("filling", ["word ", "<&>", "x"])
def test_a_long_text_keeps_its_end_where_the_command_stands(filling: str) -> None:
    command = "To act: vllm-rollout rollback llama-2-7b -e production --to 3"
    long = replace(A_MESSAGE, text=f"revision 1: {filling * 3000} {command}", reason="r" * 3000)

    for kind in ("slack", "teams", "webhook"):
        body = json.loads(rendered(long, template=None, kind=kind))  # type: ignore[arg-type]
        parts = {"slack": "blocks", "teams": "attachments", "webhook": "message"}
        text = json.dumps(body[parts[kind]], ensure_ascii=False)
        assert command in text
        assert "A PERSON IS NEEDED" in text
        assert "revision 1: " in text
        assert len(text) < 3000
        assert not re.search(r"&(?!amp;|lt;|gt;)", text) or kind != "slack"


@pytest.mark.usefixtures("url_in_environment")
def test_the_same_words_are_sent_each_time_and_with_a_beginning_its_end(receiver: Receiver) -> None:
    found = rules(kind="webhook", url_env="TEAM_HOOK", messages=["blind", "kept"])
    sender = notifier(found)
    for kind in ("blind", "seen", "promoted", "blind", "seen", "kept", "settled"):
        sender.tell(kind, "the same", build=f"sha256:{'a' * 64}")

    assert sender.undelivered(wait=True) == []

    sent = [json.loads(body) for _, body in receiver.requests]
    assert [each["kind"] for each in sent] == ["blind", "seen"] * 2 + ["kept", "settled"]
    assert {each["build"] for each in sent} == {"a" * 12}


@pytest.mark.usefixtures("url_in_environment")
def test_a_receiver_that_does_not_answer_holds_nobody_up(receiver: Receiver) -> None:
    receiver.hold.clear()
    slow = rules(kind="slack", url_env="TEAM_HOOK").model_copy(
        update={"deadline": rules(kind="slack", url_env="TEAM_HOOK").deadline / 300}
    )
    sender = notifier(slow)

    sender.tell(MessageKind.ROLLBACK, "P95 latency")  # returns with the receiver still silent
    sender.tell(MessageKind.ROLLED_BACK, "revision 1 serves")

    assert sender.undelivered(wait=True) == [
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
        assert (sender.undelivered(wait=True) == []) is expected
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

    (failure,) = sender.undelivered(wait=True)
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

    assert sender.undelivered(wait=True) == []
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

    failed = sender.undelivered(wait=True)
    sent = [json.loads(body)["blocks"][0]["text"]["text"] for _, body in receiver.requests]
    assert sent == ([] if text is None else [text])
    assert bool(failed) is (text is None)


def test_a_command_reads_the_message_from_its_input(tmp_path: Path) -> None:
    save = "import pathlib, sys; pathlib.Path(sys.argv[1]).write_text(sys.stdin.read())"
    command = [sys.executable, "-c", save, str(tmp_path / "status.json")]
    sender = notifier(rules(kind="command", command=command))

    sender.tell(MessageKind.PROMOTION, "maintenance begins")

    assert sender.undelivered(wait=True) == []
    assert json.loads((tmp_path / "status.json").read_text())["text"] == "maintenance begins"


def test_a_command_that_fails_is_said(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "raise SystemExit('the status page is closed')"]
    sender = notifier(rules(kind="command", command=command))

    sender.tell(MessageKind.PROMOTION, "maintenance begins")

    assert sender.undelivered(wait=True) == [
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
