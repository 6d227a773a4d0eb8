"""The watch that stands: hours later as in the first minute, and never against a rollout."""

import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from support.world import MODEL, PRODUCTION, STAGING, World, healthy

from vllm_rollout.model.deployment import Deployment, newest_served
from vllm_rollout.model.errors import ExitCode, UnreachableError
from vllm_rollout.model.evidence import Evidence
from vllm_rollout.model.observation import ProbeSample
from vllm_rollout.rollout import monitor
from vllm_rollout.rollout.engine import gate_and_promote
from vllm_rollout.rollout.journal import Journal, Phase
from vllm_rollout.rollout.leased_run import RunTools
from vllm_rollout.rollout.monitor import Heartbeat, Monitor, StoppableClock
from vllm_rollout.rollout.run import Clock
from vllm_rollout.rollout.soak_samples import soak_of

HOUR = 3600.0


def broken(_seconds: float) -> ProbeSample:
    return ProbeSample(total=10, failures=10, latencies_seconds=(), healthy=False)


class Standing:
    """A watch over production in the simulated world; `at` acts when its time has come."""

    def __init__(self, world: World, target: Deployment = PRODUCTION) -> None:
        self.world, self.target = world, target
        self.stop = threading.Event()
        self.ends: list[Evidence] = []
        self.runs: list[RunTools] = []
        self.told: list[tuple[str, str]] = []
        self.headlines: list[str] = []
        self.undelivered: Callable[..., list[str]] = lambda **_: []
        self.meanwhile: Callable[[], None] = lambda: None
        self.at: dict[float, Callable[[], None]] = {}
        self.watch = Monitor(
            new_tools=self._tools,
            on_end=lambda evidence, _tools: self.ends.append(evidence),
            clock=StoppableClock(
                world.clock,
                self.stop,
                lambda seconds: world.clock.sleep(timedelta(seconds=seconds)),
            ),
        )

    def _tell(self, kind: str, text: str, *, headline: str = "", build: str) -> None:
        assert build.startswith("sha256:")
        self.told.append((kind, text))
        self.headlines.append(headline)

    def _tools(self, clock: Clock) -> RunTools:
        tools = self.world.tools(
            source=self.target,
            target=self.target,
            clock=clock,
            notify=self._tell,
            undelivered=self.undelivered,
        )
        self.runs.append(tools)
        renew = self.world.clock.meanwhile
        self.world.clock.meanwhile = lambda: (renew(), self._tick())[1]
        return tools

    def _tick(self) -> None:
        self.meanwhile()
        for due in [moment for moment in self.at if moment <= self.world.clock.seconds]:
            self.at.pop(due)()

    def said(self) -> str:
        return "\n".join(f"{step.title}: {step.detail}" for step in self.runs[0].log.steps)


@pytest.fixture
def standing(world: World) -> Standing:
    """Production runs the second build, promoted with evidence; the clock is at 0."""
    assert gate_and_promote(world.tools()).exit_code == ExitCode.OK
    world.platform.calls.clear()
    world.clock.seconds = 0.0
    return Standing(world)


def rollbacks(standing: Standing) -> list[str]:
    return [call for call in standing.world.platform.calls if call.startswith("rollback")]


def test_production_that_breaks_after_five_hours_is_rolled_back(standing: Standing) -> None:
    world = standing.world
    world.probes = lambda seconds: broken(seconds) if seconds >= 5 * HOUR else healthy(seconds)

    code = standing.watch.run(timedelta(hours=24))

    assert code is ExitCode.ROLLED_BACK
    assert rollbacks(standing) == ["rollback production 1"]
    assert 5 * HOUR < world.clock.seconds < 5.1 * HOUR
    (evidence,) = standing.ends
    assert "health check" in evidence.conclusion
    entry = standing.runs[0].releases.journal.read()
    assert entry is not None
    assert entry.phase is Phase.DONE


def test_all_is_well_until_its_time_is_over(standing: Standing) -> None:
    assert standing.watch.run(timedelta(hours=3)) is ExitCode.OK
    assert rollbacks(standing) == []
    assert standing.world.clock.seconds >= 3 * HOUR


def test_nothing_to_watch_is_not_health(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world.platform, "history", lambda _deployment: [])
    standing = Standing(world)
    assert standing.watch.run(timedelta(minutes=5)) is ExitCode.INCONCLUSIVE
    assert "saw nothing" in standing.said()


def test_a_watch_that_stands_still_has_no_heartbeat(world: World, tmp_path: Path) -> None:
    heartbeat = Heartbeat(world.clock, 60, tmp_path / "file")
    assert heartbeat.alive()
    (tmp_path / "file").unlink()
    world.clock.seconds += 61
    assert not heartbeat.alive()
    with heartbeat.acting():  # a rollback takes its time
        world.clock.seconds += 600
        assert heartbeat.alive()
    assert heartbeat.alive()
    world.clock.seconds += 61
    (tmp_path / "file").unlink()
    assert not heartbeat.alive()
    assert not (tmp_path / "file").exists()


def test_what_it_brought_back_is_not_left_again_a_person_is_called(standing: Standing) -> None:
    world = standing.world
    world.probes = broken
    standing.at = {0.5 * HOUR: standing.stop.set}

    assert standing.watch.run(None) is ExitCode.OK

    assert len(rollbacks(standing)) == 1
    assert [end.exit_code for end in standing.ends] == [
        ExitCode.ROLLED_BACK,
        ExitCode.NEEDS_PERSON,
    ]
    assert "brought back itself" in standing.ends[-1].conclusion


@pytest.mark.parametrize("since_then", ["nothing", "a rollout elsewhere"])
def test_a_build_that_other_hands_brought_after_a_rollback_is_rolled_back_too(
    standing: Standing, since_then: str
) -> None:
    world = standing.world
    first = world.platform.build(PRODUCTION, {"version": 1}).digest
    world.probes = broken

    def bring() -> None:
        world.probes = healthy
        build = world.platform.build(PRODUCTION, {"version": 7})
        world.platform._add(PRODUCTION, build, 4, 4, "by other hands")
        if since_then != "nothing":
            journal = Journal(world.platform.store, MODEL)
            entry = journal.read()
            assert entry is not None
            journal.write(replace(entry, target="staging"))

    def break_it() -> None:
        world.probes = broken

    standing.at = {240.0: bring, HOUR: break_it, 2 * HOUR: standing.stop.set}

    standing.watch.run(None)

    assert rollbacks(standing) == ["rollback production 1", "rollback production 5"]
    assert world.platform.serving(PRODUCTION) == (first, 4, 4)


def test_a_rollout_under_way_is_left_alone(standing: Standing) -> None:
    world = standing.world
    journal = Journal(world.platform.store, MODEL)
    entry = journal.read()
    assert entry is not None

    def begin() -> None:
        nonlocal entry
        entry = journal.advance(entry, Phase.RAMP, "1 of 4", now=world.clock.now())
        world.probes = broken

    def finish() -> None:
        world.probes = healthy
        journal.advance(entry, Phase.DONE, "promoted", now=world.clock.now())

    standing.at = {HOUR: begin, 2 * HOUR: finish}

    assert standing.watch.run(timedelta(hours=3)) is ExitCode.OK
    assert rollbacks(standing) == []
    assert "is under way in its phase ramp" in standing.said()


def test_it_waits_for_the_models_lease_and_then_acts(standing: Standing) -> None:
    world = standing.world
    store = world.platform.store
    store.acquire(MODEL, "another run", ttl=timedelta(seconds=30))
    world.probes = broken

    def keep() -> None:
        held = store.leases.get(MODEL)
        if held is not None and held.holder == "another run":
            store.renew(MODEL, "another run", ttl=timedelta(seconds=30))

    waited: list[float] = []

    def undelivered(*, wait: bool) -> list[str]:
        if wait:
            waited.append(world.clock.seconds)
        return []

    standing.meanwhile, standing.undelivered = keep, undelivered
    standing.at = {600: lambda: store.release(MODEL, "another run")}

    assert standing.watch.run(timedelta(hours=24)) is ExitCode.ROLLED_BACK
    assert world.clock.seconds >= 600
    assert "not rolled back yet" in standing.said()
    assert [kind for kind, text in standing.told if "It waits" in text] == ["rollback"]
    assert "llama-2-7b in production waits to be rolled back" in standing.headlines
    assert min(waited) >= 600  # a message on its way holds no rollback up


def test_a_rollback_that_cannot_begin_is_told_once_and_is_no_refusal(
    standing: Standing, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = standing.world
    world.probes = broken
    real = monitor.watch_rollback

    def unreachable(_deployment: Deployment) -> None:
        raise UnreachableError("the API server does not answer", address="127.0.0.1")

    def watch_rollback(*given: Any, **more: Any) -> Evidence:
        with monkeypatch.context() as patched:
            if world.clock.seconds < 600:
                patched.setattr(world.platform, "history", unreachable)
            return real(*given, **more)

    monkeypatch.setattr(monitor, "watch_rollback", watch_rollback)

    assert standing.watch.run(timedelta(hours=2)) is ExitCode.ROLLED_BACK

    assert [kind for kind, _ in standing.told] == ["rollback", "rollback", "rolled-back"]
    assert "the API server does not answer" in standing.told[0][1]


def test_a_store_that_goes_away_and_comes_back_ends_no_watch(
    standing: Standing, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = standing.world
    store = world.platform.store
    real = {"read": store.read, "renew": store.renew, "acquire": store.acquire}

    def away(*_: object, **__: object) -> None:
        raise UnreachableError("the API server does not answer", address="127.0.0.1")

    def go() -> None:
        for name in real:
            monkeypatch.setattr(store, name, away)

    def come() -> None:
        for name, method in real.items():
            monkeypatch.setattr(store, name, method)
        world.probes = broken

    standing.at = {HOUR: go, 2 * HOUR: come}

    assert standing.watch.run(timedelta(hours=24)) is ExitCode.ROLLED_BACK
    assert "the API server does not answer" in standing.said()


def test_of_two_watches_one_leads(standing: Standing) -> None:
    world = standing.world
    world.probes = broken
    store = world.platform.store
    lead = store.acquire(f"watch/{PRODUCTION.release}", "the first", ttl=timedelta(seconds=30))
    standing.meanwhile = lambda: store.renew(lead.name, "the first", ttl=timedelta(seconds=30))
    standing.at = {HOUR: standing.stop.set}

    assert standing.watch.run(None) is ExitCode.OK
    assert rollbacks(standing) == []
    assert "another watch leads" in standing.said()


def test_each_episode_of_blindness_has_a_reported_beginning_and_end(
    standing: Standing, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = standing.world
    replicas = world.platform.replicas
    partly = {"see": lambda: monkeypatch.setattr(world.platform, "replicas", replicas)}
    partly["lose"] = lambda: monkeypatch.setattr(world.platform, "replicas", lambda _: None)

    def lose_all() -> None:
        partly["lose"]()
        world.probes = lambda _seconds: ProbeSample(
            total=0, failures=0, latencies_seconds=(), healthy=False, path_errors="no path"
        )

    def see_all() -> None:
        partly["see"]()
        world.probes = healthy

    journal = Journal(world.platform.store, MODEL)

    def write_journal() -> None:  # begins another watch in the middle of an episode
        entry = journal.read()
        assert entry is not None
        journal.advance(entry, Phase.DONE, "another", now=world.clock.now())

    standing.at = {
        600: partly["lose"], 900: write_journal, 1800: partly["see"],
        HOUR: partly["lose"], 1.5 * HOUR: lose_all, 2 * HOUR: see_all,
    }  # fmt: skip

    assert standing.watch.run(timedelta(hours=3)) is ExitCode.OK

    where = f"production/{MODEL}"
    some = f"The watch over {MODEL} in production has no data for some of its triggers"
    every = "error rate, complete outage, P95 latency, crash loop, health check"
    again = f"every trigger over {where} has data again, after"
    assert standing.told == [
        ("blind", f"no data of {where}: crash loop"),
        ("seen", f"{again} 18m"),
        ("blind", f"no data of {where}: crash loop"),
        ("blind", f"no data of {where}: {every}"),
        ("seen", f"{again} 58m"),
    ]
    assert standing.headlines == [some, "", some, "", ""]


def test_a_standing_watch_asks_its_own_messages_and_says_which_did_not_arrive(
    standing: Standing, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []

    def undelivered(*, wait: bool) -> list[str]:
        asked.append(wait)
        return ["blind to pager: HTTP 503"] if len(asked) == 3 else []

    monkeypatch.setattr(standing, "undelivered", undelivered)

    assert standing.watch.run(timedelta(minutes=5)) is ExitCode.OK

    assert "a message did not arrive: blind to pager: HTTP 503" in standing.said()
    assert (set(asked[:-1]), asked[-1]) == ({False}, True)


def test_a_watch_over_staging_is_the_soak_that_a_promotion_needs(world: World) -> None:
    world.overrides |= {"environments.staging.soak.observed_by": "samples"}
    ill = ProbeSample(total=10, failures=1, latencies_seconds=(0.1,) * 9, healthy=True)
    world.probes = lambda seconds: ill if 7200 <= seconds < 7230 else healthy(seconds)
    before = gate_and_promote(world.tools())
    assert before.exit_code == ExitCode.INCONCLUSIVE
    assert "the soak is not over" in before.conclusion

    assert Standing(world, STAGING).watch.run(timedelta(hours=24)) is ExitCode.OK

    policy, platform = world.tools().run.policy, world.platform
    revision = newest_served(platform.history(STAGING))
    assert revision is not None
    now = world.clock.now()
    soak = soak_of(platform, policy, STAGING, revision, now)
    assert soak is not None
    assert timedelta(0) < soak.left < timedelta(minutes=2)  # of half a minute it was not well
    samples = platform.store.entries[f"soak/{STAGING.release}/00000001"]
    assert int(samples.version) < 24 * 60 * 1.1  # of looks every five seconds
    assert Standing(world, STAGING).watch.run(timedelta(minutes=5)) is ExitCode.OK
    assert gate_and_promote(world.tools()).exit_code == ExitCode.OK
