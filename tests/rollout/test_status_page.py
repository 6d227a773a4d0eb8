"""A rollout is one incident on a status page: opened before, updated, closed, after a crash too."""

import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import yaml
from support.recorder import LOST, Recorder, Sent, Statuspage, recorder, shown_on
from support.samples import DOCS
from support.simulated import FakeClock, MemoryStore
from support.world import MODEL, PRODUCTION, QUICK, World, builds, healthy, left

from vllm_rollout.judge import Outcome
from vllm_rollout.model.errors import ExitCode, UnreachableError, UsageError
from vllm_rollout.model.evidence import Evidence
from vllm_rollout.model.observation import ProbeSample
from vllm_rollout.policy import load_policy
from vllm_rollout.rollout.engine import gate_and_promote, manual_rollback
from vllm_rollout.rollout.journal import Phase
from vllm_rollout.rollout.leased_run import RunTools
from vllm_rollout.rollout.monitor import Monitor, StoppableClock
from vllm_rollout.rollout.notifier import Notifier, messages_missed
from vllm_rollout.rollout.run import Clock

KEY = "the-key-of-the-page"
HOSTILE = 'P95 "7 s"\n<script> \\ {{ 7 * 7 }}'


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorder]:
    monkeypatch.setenv("PAGE_KEY", KEY)
    with recorder() as found:
        found.answer = Statuspage()
        monkeypatch.setenv("PAGE_URL", f"{found.url}/of/a/secret-path/?token=t0ken-of-the-url")
        yield found


@pytest.fixture
def page(server: Recorder) -> Statuspage:
    assert isinstance(server.answer, Statuspage)
    return server.answer


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore(FakeClock())


def statuspage(server: Recorder, **more: Any) -> dict[str, Any]:
    return {
        "name": "page", "kind": "statuspage", "page_id": "abc", "key_env": "PAGE_KEY",
        "url": server.url, **more,
    }  # fmt: skip


def run(
    channel: dict[str, Any], store: MemoryStore | None, run_id: str = "run-1", **more: Any
) -> Notifier:
    """The messages of one run, which does not wait between attempts."""
    changes = {
        "notifications.channels": [channel],
        "notifications.timeout": "20s",
        "notifications.deadline": more.pop("deadline", "60s"),
        "notifications.attempts": 3,
    }
    return Notifier(
        load_policy(None, overrides=changes).notifications,
        model="llama-2-7b",
        environment="production",
        run_id=run_id,
        who="ada",
        reason="new model",
        now=lambda: datetime(2026, 11, 18, 10, tzinfo=UTC),
        store=store,
        expected=timedelta(hours=2),
        **{"pause": lambda _seconds: False, **more},
    )


def tell(messages: Notifier, *kinds: str, text: str = "1 of 4 replicas", **more: str) -> list[str]:
    """Send messages of these kinds, wait, and return what did not arrive."""
    for kind in kinds:
        messages.tell(kind, text, **more)
    return messages.undelivered(wait=True)


def test_a_maintenance_is_opened_updated_at_each_step_and_closed(
    server: Recorder, page: Statuspage, store: MemoryStore
) -> None:
    messages = run(statuspage(server, components=["c1", "c2"]), store)

    assert tell(messages, "waiting", "promotion", "step", "step", "blind", "promoted") == []

    opening, *updates, end = server.sent
    assert (opening.method, opening.path) == ("POST", "/v1/pages/abc/incidents")
    said = opening.body["incident"]
    assert {name: said[name] for name in said if name not in ("body", "metadata")} == {
        "name": "Rollout of llama-2-7b to production",
        "status": "in_progress",
        "scheduled_for": "2026-11-18T10:00:00+00:00",
        "scheduled_until": "2026-11-18T12:00:00+00:00",
        "scheduled_auto_in_progress": False,
        "scheduled_auto_completed": False,
        "component_ids": ["c1", "c2"],
        "components": {"c1": "under_maintenance", "c2": "under_maintenance"},
        "deliver_notifications": True,
    }
    assert said["metadata"] == {"vllm_rollout": {"run_id": "run-1", "channel": "page"}}
    assert [(each.method, each.path) for each in (*updates, end)] == [
        ("PATCH", "/v1/pages/abc/incidents/inc1")
    ] * 3
    assert [each.body["incident"]["deliver_notifications"] for each in updates] == [False, False]
    assert "1 of 4 replicas" in updates[0].body["incident"]["body"]
    assert end.body["incident"] == {
        "status": "completed",
        "body": "llama-2-7b is promoted to production",
        "deliver_notifications": True,
        "component_ids": ["c1", "c2"],
        "components": {"c1": "operational", "c2": "operational"},
    }
    assert {each.headers["authorization"] for each in server.sent} == {f"OAuth {KEY}"}
    assert KEY not in str(store.entries)
    assert tell(messages, "step", "ended") == []
    assert len(server.sent) == 4  # nothing is open any more


def test_an_incident_has_the_states_of_one_and_no_schedule(
    server: Recorder, page: Statuspage, store: MemoryStore
) -> None:
    messages = run(statuspage(server, opens="incident", components=["c1"]), store)

    assert tell(messages, "rollback", "rolled-back", text="a pod said: secret things") == []

    opening, end = (each.body["incident"] for each in server.sent)
    assert (opening["status"], end["status"]) == ("identified", "resolved")
    assert opening["components"] == {"c1": "degraded_performance"}
    assert not [name for name in opening if "scheduled" in name]
    assert page.incidents[0]["updates"] == [
        "llama-2-7b in production is being rolled back",
        "llama-2-7b in production is rolled back",
    ]  # what everybody may read, and no text of a pod


@pytest.mark.parametrize("status", [LOST, 502, 429], ids=["lost", "bad gateway", "too many"])
def test_an_opening_that_may_have_arrived_is_looked_up_before_it_is_sent_again(
    server: Recorder, page: Statuspage, store: MemoryStore, status: int
) -> None:
    server.script = [status]

    assert tell(run(statuspage(server), store), "promotion", "promoted") == []

    assert [(each["status"]) for each in page.incidents] == ["completed"]
    assert server.of("GET")[0].path == "/v1/pages/abc/incidents?limit=100"
    assert len(server.of("POST")) == (1 if status == LOST else 2)


@pytest.mark.parametrize("known", [True, False], ids=["its id is kept", "killed before that"])
def test_the_next_run_goes_on_with_what_a_killed_one_opened(
    server: Recorder, page: Statuspage, store: MemoryStore, *, known: bool
) -> None:
    assert tell(run(statuspage(server), store), "promotion", "step") == []
    (entry,) = (key for key in store.entries if key.startswith("status-page/"))
    if not known:
        store.write(entry, {"run_id": "run-1"}, expect=store.entries[entry].version)

    resumed = run(statuspage(server), store, "run-2")
    assert tell(resumed, "rollback", "rolled-back", rollout="run-1") == []

    assert [each["status"] for each in page.incidents] == ["completed"]
    assert page.incidents[0]["updates"][-1] == "llama-2-7b in production is rolled back"
    assert store.entries[entry].value == {}


def test_what_a_killed_run_left_open_is_closed_and_no_later_one_of_another(
    server: Recorder, page: Statuspage, store: MemoryStore
) -> None:
    assert tell(run(statuspage(server), store), "promotion") == []
    second, third = (run(statuspage(server), store, name) for name in ("run-2", "run-3"))

    assert tell(second, "promotion") == []
    assert [each["status"] for each in page.incidents] == ["completed", "in_progress"]

    third.close_left()  # read when the first one's was open
    assert tell(third, "ended") == []
    assert page.incidents[1]["status"] == "in_progress"

    fourth = run(statuspage(server), store, "run-4")
    fourth.close_left()
    assert fourth.undelivered(wait=True) == []
    assert [each["status"] for each in page.incidents] == ["completed", "completed"]
    assert page.incidents[1]["updates"][-1] == "The rollout of llama-2-7b to production is over"


def test_a_failed_rollback_stays_open_and_says_that_a_person_is_needed(
    server: Recorder, page: Statuspage, store: MemoryStore
) -> None:
    messages = run(statuspage(server), store)

    assert tell(messages, "promotion", "rollback", "rollback-failed") == []

    (incident,) = page.incidents
    assert incident["status"] == "in_progress"
    words = "A PERSON IS NEEDED: llama-2-7b in production is not rolled back"
    assert incident["updates"][-1] == words

    again = run(statuspage(server), store, "run-2")
    assert tell(again, "rollback", "rolled-back", rollout="run-1") == []
    assert [each["status"] for each in page.incidents] == ["completed"]


def test_an_interrupted_rollout_is_closed_and_the_next_run_opens_no_second(
    server: Recorder, page: Statuspage, store: MemoryStore
) -> None:
    assert tell(run(statuspage(server), store), "promotion", "left") == []
    assert [each["status"] for each in page.incidents] == ["completed"]

    resumed = run(statuspage(server), store, "run-2")
    assert tell(resumed, "rollback", rollout="run-1") == []
    assert [each["status"] for each in page.incidents] == ["in_progress"]

    assert tell(resumed, "rolled-back", rollout="run-1") == []
    assert [each["status"] for each in page.incidents] == ["completed"]


def test_a_run_that_lost_its_rollout_to_another_closes_nothing(
    server: Recorder, page: Statuspage, store: MemoryStore
) -> None:
    frozen, other = (run(statuspage(server), store, name) for name in ("run-1", "run-2"))
    assert tell(frozen, "promotion") == []
    assert tell(other, "step", rollout="run-1") == []

    assert tell(frozen, "left") == []
    assert page.incidents[0]["status"] == "in_progress"

    assert tell(other, "left", rollout="run-1") == []
    assert page.incidents[0]["status"] == "completed"


def test_a_rollback_that_still_waits_opens_nothing(
    server: Recorder, page: Statuspage, store: MemoryStore
) -> None:
    assert tell(run(statuspage(server), store), "rollback", headline="it waits") == []
    assert page.incidents == []


def test_two_channels_may_have_a_page_in_common(
    server: Recorder, page: Statuspage, store: MemoryStore
) -> None:
    assert tell(run(statuspage(server), store), "promotion") == []

    second = run(statuspage(server, name="second"), store)
    server.script = [503]
    assert tell(second, "promotion", "promoted") == []

    assert [each["status"] for each in page.incidents] == ["in_progress", "completed"]


def test_an_update_never_overtakes_the_opening(
    server: Recorder, page: Statuspage, store: MemoryStore
) -> None:
    server.script = [503]
    server.hold.clear()
    messages = run(statuspage(server), store, pause=None)
    messages.tell("promotion", "it begins")
    messages.tell("step", "1 of 4 replicas")
    server.hold.set()

    failed = tell(messages, "promoted")

    assert [each for each in failed if "HTTP 503" not in each] == []
    assert server.sent[-1].body["incident"]["status"] == "completed"
    assert len(page.incidents) == 1
    first_patch = next(at for at, each in enumerate(server.sent) if each.method == "PATCH")
    assert [each.method for each in server.sent[:first_patch]].count("POST") == 2
    assert messages_missed([store], "llama-2-7b") == {}


def test_a_page_that_refuses_is_named_once_and_its_key_never(
    server: Recorder, page: Statuspage, store: MemoryStore
) -> None:
    server.script = [401]

    failed = tell(run(statuspage(server), store), "promotion")

    assert failed == ["promotion to page: HTTP 401"]
    assert len(server.sent) == 1
    (line,) = messages_missed([store], "llama-2-7b")["page"]
    assert "HTTP 401" in line
    assert KEY not in f"{failed}{store.entries}"


def test_a_page_that_does_not_answer_holds_no_rollback_up(
    server: Recorder, store: MemoryStore
) -> None:
    server.hold.clear()

    failed = tell(run(statuspage(server), store, deadline="100ms"), "promotion", "rollback")

    late = "to page: not delivered in time; it may still arrive"
    assert failed == [f"promotion {late}", f"rollback {late}"]


def test_a_store_that_fails_opens_no_second(server: Recorder, page: Statuspage) -> None:
    store = MemoryStore(FakeClock())
    real, failures = store.write, [False, True, False]

    def write(key: str, value: Any, *, expect: str | None) -> str:
        if key.startswith("status-page/") and failures and failures.pop(0):
            raise UnreachableError("it is away", address="the store")
        return real(key, value, expect=expect)

    store.write = write  # type: ignore[method-assign]

    assert tell(run(statuspage(server), store), "promotion", "promoted") == []

    assert [each["status"] for each in page.incidents] == ["completed"]
    assert len(server.of("POST")) == 1


def test_by_default_a_page_hears_of_the_last_environment_alone(
    server: Recorder, page: Statuspage, store: MemoryStore
) -> None:
    for more, expected in (({}, 0), ({"environments": ["production"]}, 1)):
        messages = run(statuspage(server, **more), store, serves_users=False)
        assert tell(messages, "promotion", "promoted") == []
        assert len(page.incidents) == expected


def any_page(folder: Path, **more: Any) -> dict[str, Any]:
    (folder / "tenant").write_text("of-the-file\n")
    return {
        "name": "page", "kind": "http", "url_env": "PAGE_URL",
        "headers_env": {"X-Token": "PAGE_KEY"}, "headers_file": {"X-Tenant": f"{folder}/tenant"},
        "open": {
            "path": "/incidents", "id_from": "data.0.id",
            "body": '{"name": "{{ model }}", "text": "{{ text }}", "same": {{ text | tojson }}}',
        },
        "update": {"method": "PUT", "path": "/incidents/{{ id }}", "body": '"{{ message }}"'},
        "close": {"method": "PATCH", "path": "/incidents/{{ id }}?by={{ who }}", "body": "{}"},
        **more,
    }  # fmt: skip


def created(sent: Sent) -> Any:
    return {"data": [{"id": 7 if sent.method == "POST" else None}]}


def test_any_other_page_gets_the_requests_of_its_templates(
    server: Recorder, store: MemoryStore, tmp_path: Path
) -> None:
    server.answer, server.script = created, [LOST]
    messages = run(any_page(tmp_path), store)

    assert tell(messages, "promotion", "step", "promoted", text=HOSTILE) == []

    lost, opening, update, end = server.sent
    root, token = "/of/a/secret-path/incidents", "?token=t0ken-of-the-url"
    assert (lost.path, opening.path) == (root + token, root + token)
    assert opening.body == {"name": "llama-2-7b", "text": HOSTILE, "same": HOSTILE}
    assert (update.method, update.path) == ("PUT", f"{root}/7{token}")
    assert update.body.startswith("The rollout of llama-2-7b to production goes on\nP95")
    assert (end.method, end.path) == ("PATCH", f"{root}/7{token}&by=ada")
    for each in server.sent:
        assert (each.headers["x-token"], each.headers["x-tenant"]) == (KEY, "of-the-file")
    keys = [each.headers["idempotency-key"] for each in server.sent]
    assert keys[0] == keys[1] == "vllm-rollout-llama-2-7b-production-run-1-page"
    assert len(set(keys)) == 3


def test_a_page_without_ids_is_asked_by_the_key_it_was_sent(
    server: Recorder, store: MemoryStore, tmp_path: Path
) -> None:
    server.answer = lambda _sent: "no id at all"
    channel = any_page(tmp_path, open={"path": "/{{ key }}"}, update=None)
    del channel["update"]

    assert tell(run(channel, store), "promotion", "step", "promoted") == []

    key = "vllm-rollout-llama-2-7b-production-run-1-page"
    assert [each.path.rpartition("/")[2].partition("?")[0] for each in server.sent] == [key, key]


def test_a_page_that_can_be_searched_is_searched_before_it_is_asked_again(
    server: Recorder, store: MemoryStore, tmp_path: Path
) -> None:
    server.script, server.answer = [LOST], lambda _sent: {"data": [{"id": "x/../y"}]}
    find = {"method": "GET", "path": "/incidents?q={{ key }}", "id_from": "data.0.id"}

    assert tell(run(any_page(tmp_path, find=find), store), "promotion", "promoted") == []

    assert [each.method for each in server.sent] == ["POST", "GET", "PATCH"]
    assert server.sent[-1].path.endswith("/incidents/x%2F..%2Fy?token=t0ken-of-the-url&by=ada")


def test_an_opening_without_an_id_is_never_sent_again(
    server: Recorder, store: MemoryStore, tmp_path: Path
) -> None:
    server.answer = lambda _sent: {"data": []}
    messages = run(any_page(tmp_path), store)

    failed = [*tell(messages, "promotion"), *tell(messages, "step"), *tell(messages, "promoted")]

    assert len(server.sent) == 1
    assert len(failed) == 3
    assert all("its answer to the opening has no id" in each for each in failed)


def test_the_documented_page_of_your_own_works(
    server: Recorder, store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (DOCS / "how-to" / "notifications.md").read_text(encoding="utf-8")
    (text,) = (
        each for each in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL) if "kind: http" in each
    )
    (channel,) = yaml.safe_load(text)["notifications"]["channels"]
    monkeypatch.setenv("PAGE_API", server.url)
    monkeypatch.setenv("PAGE_AUTHORIZATION", f"Bearer {KEY}")
    server.script = [LOST]
    server.answer = lambda sent: {"data": [{"id": 7}] if sent.method == "GET" else {"id": 7}}

    assert tell(run(channel, store), "promotion", "step", "promoted") == []

    assert [(each.method, each.path) for each in server.sent] == [
        ("POST", "/incidents"),
        ("GET", "/incidents?search=vllm-rollout-llama-2-7b-production-run-1-status"),
        ("POST", "/incidents/7/updates"),
        ("POST", "/incidents/7/updates"),
    ]
    assert server.sent[-1].body["message"] == "llama-2-7b is promoted to production"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ('{"text": {{ text }}}', "makes no JSON"),
        ("{{ secret }}", "'secret' is undefined"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
    ],
)
def test_a_template_that_cannot_be_used_sends_nothing(
    server: Recorder, store: MemoryStore, tmp_path: Path, body: str, said: str
) -> None:
    channel = any_page(tmp_path, open={"path": "/incidents", "body": body})

    (failure,) = tell(run(channel, store), "promotion")

    assert said in failure
    assert "secret-path" not in failure
    assert "t0ken" not in failure
    assert server.sent == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"page_id": None}, "page_id"),
        ({"page_id": "../x"}, "page_id"),
        ({"key_env": None}, "needs either key_env or key_file"),
        ({"url_env": "PAGE_URL"}, "not several"),
        ({"messages": ["promotion"]}, "it has no messages"),
        ({"open": {"path": "/x"}}, "statuspage has no open"),
        ({"kind": "http", "url": None}, "http needs either url_env or url_file"),
        ({"kind": "slack", "url": None, "url_env": "PAGE_URL"}, "slack has no"),
    ],
)
def test_a_channel_that_could_not_work_is_refused(
    server: Recorder, change: dict[str, Any], said: str
) -> None:
    channel = {
        name: value for name, value in (statuspage(server) | change).items() if value is not None
    }
    with pytest.raises(Exception, match=said):
        load_policy(None, overrides={"notifications.channels": [channel]})


@pytest.fixture
def quick(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setenv("PAGE_KEY", KEY)
    world.overrides.update(QUICK)
    return world


def rolled_out(world: World, page: Statuspage, **more: Any) -> Evidence:
    tools = world.tools()
    shown_on(page, tools, world)
    return gate_and_promote(tools, **more)


def test_a_promotion_is_shown_before_it_changes_anything_and_at_each_step(quick: World) -> None:
    page, changed = Statuspage(), []
    page.on_said = lambda: changed.append(len(quick.platform.calls))

    assert rolled_out(quick, page).exit_code == ExitCode.OK

    (incident,) = page.incidents
    assert changed == [0, 0, 1, 2, 2, 2]
    (begins, *steps, end) = incident["updates"]
    assert begins == "Promotion of llama-2-7b to production begins"
    shown = [each.partition("\n")[2].partition(" on build")[0] for each in steps]
    assert shown[:2] == ["1 of 4 replicas", "4 of 4 replicas"]
    assert [each.rpartition(" ")[0] for each in shown[2:]] == [
        "gating revision",
        "watching revision",
    ]
    assert (incident["status"], end) == ("completed", "llama-2-7b is promoted to production")


def fails_to_roll_back(world: World) -> None:
    world.gates.outcomes["production"] = Outcome.FAIL
    world.platform.fail_rollback = True


def is_interrupted(world: World) -> None:
    def interrupt(_call: str) -> None:
        raise KeyboardInterrupt

    world.platform.in_change = interrupt


@pytest.mark.parametrize(
    ("happens", "status", "words"),
    [
        (
            lambda world: world.gates.outcomes.update(production=Outcome.FAIL),
            "completed",
            "is rolled back",
        ),
        (
            lambda world: world.platform.never_ready.add(builds(world)[1]),
            "completed",
            "is rolled back",
        ),
        (fails_to_roll_back, "in_progress", "A PERSON IS NEEDED"),
        (is_interrupted, "completed", "is unfinished"),
    ],
    ids=["gates fail", "never ready", "rollback fails", "interrupted"],
)
def test_each_end_of_a_promotion_is_shown(
    quick: World, happens: Callable[[World], None], status: str, words: str
) -> None:
    page = Statuspage()
    happens(quick)

    rolled_out(quick, page)

    (incident,) = page.incidents
    assert incident["status"] == status
    assert words in incident["updates"][-1]


def test_a_watch_that_is_taken_up_opens_again_what_was_closed(quick: World) -> None:
    page = Statuspage()
    during: list[str] = []

    def probes(seconds: float) -> ProbeSample:
        watching = left(quick).phase is Phase.WATCH
        during.extend([page.incidents[0]["status"]] if watching else [])
        if len(during) == 1:
            raise KeyboardInterrupt
        return healthy(seconds)

    quick.probes = probes
    assert rolled_out(quick, page).exit_code == ExitCode.INTERRUPTED
    assert page.incidents[0]["status"] == "completed"

    assert rolled_out(quick, page).exit_code == ExitCode.OK

    assert set(during) == {"in_progress"}
    assert page.incidents[0]["status"] == "completed"


def test_a_run_without_the_lease_says_nothing_of_its_end(quick: World) -> None:
    lease = (MODEL, "another run")
    quick.platform.store.acquire(*lease, ttl=timedelta(seconds=30))
    said: list[str] = []
    tools = quick.tools(announce=lambda kind, *_, **__: said.append(kind))
    quick.clock.meanwhile = lambda: quick.platform.store.renew(*lease, ttl=timedelta(seconds=30))

    assert gate_and_promote(tools).exit_code == ExitCode.INCONCLUSIVE

    assert said == []  # what is open is of the run that has the lease


def test_a_manual_rollback_after_a_failed_one_goes_on_with_what_is_open(quick: World) -> None:
    page = Statuspage()
    fails_to_roll_back(quick)
    assert rolled_out(quick, page).exit_code == ExitCode.NEEDS_PERSON
    quick.platform.fail_rollback = False

    tools = quick.tools(source=PRODUCTION)
    shown_on(page, tools, quick)
    manual_rollback(tools, to=1, reason="by a person")

    (incident,) = page.incidents
    assert incident["status"] == "completed"
    assert incident["updates"][-1] == "llama-2-7b in production is rolled back"


def test_a_promotion_that_stops_before_its_first_change_is_closed(
    quick: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def promote(*_: Any) -> None:
        raise UsageError("the policy has a mistake")

    monkeypatch.setattr("vllm_rollout.rollout.engine.promote", promote)
    page = Statuspage()

    assert rolled_out(quick, page).exit_code == ExitCode.USAGE

    (incident,) = page.incidents
    assert incident["status"] == "completed"
    assert incident["updates"][-1] == "The rollout of llama-2-7b to production is over"


def test_who_changes_nothing_shows_nothing(quick: World) -> None:
    page = Statuspage()
    assert rolled_out(quick, page, plan_only=True).exit_code == ExitCode.OK
    quick.gates.outcomes["staging"] = Outcome.FAIL
    assert rolled_out(quick, page).exit_code == ExitCode.GATE_FAILED
    assert page.incidents == []


def test_a_standing_watch_closes_what_a_killed_run_left_open(quick: World) -> None:
    page = Statuspage()
    assert rolled_out(quick, page).exit_code == ExitCode.OK
    (incident,) = page.incidents
    key = f"status-page/{MODEL}/production/page"
    store = quick.platform.store
    run_id = incident["metadata"]["vllm_rollout"]["run_id"]
    store.write(key, {"run_id": run_id, "id": "inc1"}, expect=store.entries[key].version)
    incident["status"] = "in_progress"  # as if killed before the end was shown

    def new_tools(given: Clock) -> RunTools:
        tools = quick.tools(source=PRODUCTION, target=PRODUCTION, clock=given)
        shown_on(page, tools, quick)
        return tools

    clock = StoppableClock(
        quick.clock, Event(), lambda seconds: quick.clock.sleep(timedelta(seconds=seconds))
    )
    watch = Monitor(new_tools=new_tools, on_end=lambda *_: None, clock=clock)
    assert watch.run(timedelta(minutes=1)) is ExitCode.OK
    assert incident["status"] == "completed"
