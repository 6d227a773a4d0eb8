"""Continuous monitor of a deployment, for hours or without end, whoever deployed it.

It rolls back as the watch of a rollout does, under the model's lease, with evidence and record. It
leaves an unfinished rollout alone: that one watches itself. Of several monitors of one deployment,
one leads and the others wait for its lease.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

from vllm_rollout.judge import Outcome
from vllm_rollout.model.deployment import newest_served
from vllm_rollout.model.errors import ExitCode, RolloutError
from vllm_rollout.model.evidence import Evidence
from vllm_rollout.model.observation import Observation
from vllm_rollout.model.units import format_about
from vllm_rollout.platform.base import ConflictError, LiveObjects, changed_objects
from vllm_rollout.rollout.engine import watch_rollback
from vllm_rollout.rollout.journal import Journal, JournalEntry
from vllm_rollout.rollout.lease import TTL, HeldLease, LeaseLostError, hold
from vllm_rollout.rollout.leased_run import RunTools
from vllm_rollout.rollout.run import Clock, Run, RunLog


class Stopped(Exception):  # noqa: N818 - no error: it was asked for
    """The watch was asked to end while it waited."""


class StoppableClock:
    """A clock whose sleep ends, by `Stopped`, as soon as `stop` is set.

    `wait` waits for the given seconds, or until `stop` is set.
    """

    def __init__(
        self, clock: Clock, stop: threading.Event, wait: Callable[[float], object] | None = None
    ) -> None:
        self.unstopped = clock
        self._stop, self._wait = stop, wait or stop.wait

    def now(self) -> datetime:
        """Wall-clock time, with its zone."""
        return self.unstopped.now()

    def monotonic(self) -> float:
        """Seconds that never run backwards."""
        return self.unstopped.monotonic()

    def sleep(self, duration: timedelta) -> None:
        """Wait.

        Raises:
            Stopped: the watch was asked to end.
        """
        if not self._stop.is_set():
            self._wait(max(0.0, duration.total_seconds()))
        if self._stop.is_set():
            raise Stopped


class Heartbeat:
    """Progress of the watch: its lease is renewed, and its file is touched, only while it goes on.

    It has `longest_seconds` from one turn of its loop to the next. A rollback takes longer and has
    deadlines of its own.
    """

    def __init__(self, clock: Clock, longest_seconds: float, file: Path | None) -> None:
        self._clock, self._longest_seconds, self._file = clock, longest_seconds, file
        self._last = clock.monotonic()
        self._acts = False

    def beat(self) -> None:
        """Note that the loop has come round."""
        self._last = self._clock.monotonic()
        self.alive()

    @contextmanager
    def acting(self) -> Iterator[None]:
        """Stay alive for the length of a `with` block."""
        self._acts = True
        try:
            yield
        finally:
            self._acts = False
            self.beat()

    def alive(self) -> bool:
        """Return whether the watch goes on; if so the file is touched."""
        late = self._clock.monotonic() - self._last > self._longest_seconds
        if late and not self._acts:
            return False
        if self._file is not None:
            with suppress(OSError):  # the probe then says what this cannot
                self._file.touch()
        return True


@dataclass(slots=True, kw_only=True)
class Monitor:
    """Watches one deployment until its clock is stopped or its time is over.

    `new_tools` makes the tools of one run with the clock it is given, and is called again for each
    rollback; `on_end` is given the evidence of each. A rollback that was begun is finished before a
    stop is heeded. `heartbeat` is a file that is touched while observations are made.
    """

    new_tools: Callable[[Clock], RunTools]
    on_end: Callable[[Evidence, RunTools], None]
    clock: StoppableClock
    heartbeat: Path | None = None
    _given_up: int | None = field(default=None)
    """Revision that is not rolled back again: a person was called."""
    _last_step: str = field(default="")
    _seen: bool = field(default=False)
    """True when the deployment was observed."""

    def run(self, duration: timedelta | None) -> ExitCode:
        """Watch for `duration`, None without end; return how it ended.

        OK when nothing happened, or where the watch without end was stopped; with a duration it
        ends with the first rollback, by its code, and is inconclusive if nothing was observed.
        """
        tools = self.new_tools(self.clock)
        try:
            return self._watch(tools, duration)
        finally:
            with suppress(KeyboardInterrupt):  # ends the waiting, and nothing else
                tools.log.log_undelivered(wait=True)

    def _watch(self, tools: RunTools, duration: timedelta | None) -> ExitCode:
        run, log, clock = tools.run, tools.log, self.clock
        until = None if duration is None else clock.monotonic() + duration.total_seconds()
        name = f"watch/{run.target.release}"
        watch = run.policy.watch
        longest = watch.interval_seconds + 2 * watch.probe_timeout_seconds + TTL.total_seconds()
        pulse = Heartbeat(clock, longest, self.heartbeat)
        try:
            while until is None or clock.monotonic() < until:
                pulse.beat()
                try:
                    with hold(
                        tools.releases.platform.store,
                        name,
                        clock=clock,
                        on_wait=lambda text: self._log_once(log, "waiting to lead", text),
                        alive=pulse.alive,
                    ) as held:
                        code = self._lead(tools, held, until, pulse)
                except ConflictError as error:
                    self._log_once(log, "another watch leads", str(error))
                except RolloutError as error:
                    text = f"{error}. {error.remedy}".rstrip()
                    self._log_once(log, "the watch waits", text)
                else:
                    if code is not None:
                        return code
                clock.sleep(run.policy.watch.interval)
        except Stopped:
            log.log_step("the watch was asked to end", outcome=Outcome.PASS)
            return ExitCode.OK
        if not self._seen:
            why = "nothing was deployed, or it could not be reached"
            log.log_step("the watch is over and saw nothing", why, Outcome.INCONCLUSIVE)
            return ExitCode.INCONCLUSIVE
        log.log_step("the time of the watch is over", outcome=Outcome.PASS)
        return ExitCode.OK

    def _lead(
        self, tools: RunTools, held: HeldLease, until: float | None, pulse: Heartbeat
    ) -> ExitCode | None:
        """Watch while the lead lasts; a code when the watch is over, None to begin again.

        Raises:
            RolloutError: the lead is lost, or the platform or the store cannot be asked for now.
        """
        run, log, observer = tools.run, tools.log, tools.observer
        target, journal, platform = run.target, tools.releases.journal, tools.releases.platform
        while until is None or self.clock.monotonic() < until:
            pulse.beat()
            held.ensure()
            entry = journal.read()
            objects = platform.live_objects(target)
            serving = newest_served(platform.history(target))
            if serving is None or (why := self._why_not(entry, serving.number)):
                what = why if serving else "nothing is deployed"
                self._log_once(log, f"not watching {target}", what)
                self.clock.sleep(run.policy.watch.interval)
                continue
            log.build = serving.build.digest
            left = None if until is None else timedelta(seconds=until - self.clock.monotonic())
            begins = self._log_once(
                log,
                f"watching {target}, revision {serving.number}",
                f"for {format_about(left)}" if left else "until stopped",
            )
            if begins and entry is not None and not entry.unfinished:
                log.announce_end(entry.note, rollout=entry.run_id)
            sample = observer.soak_sampler(target, serving)

            def observed(
                seen: Observation, sample: Callable[[Observation], None] | None = sample
            ) -> None:
                pulse.beat()
                log.log_undelivered(wait=False)
                self._seen = self._seen or seen.probes.total > 0
                if sample:
                    sample(seen)

            end = observer.watch(
                target,
                left,
                interrupted=_changed(journal, held, entry, partial(self._edited, tools, objects)),
                on_observation=observed,
            )
            if not end.fired:
                continue
            with pulse.acting():
                code = self._act(run, log, held, end.fired, serving.number)
            if code is not None and until is not None:
                return code
        return None

    def _edited(self, tools: RunTools, left: LiveObjects) -> bool:
        """Return whether somebody has changed what runs the replicas, and log it."""
        target = tools.run.target
        found = changed_objects(left, tools.releases.platform.live_objects(target))
        if found:
            self._log_once(tools.log, f"{target} was changed", "; ".join(found))
        return bool(found)

    def _why_not(self, entry: JournalEntry | None, revision: int) -> str:
        """Return why nothing is watched now; empty where it is."""
        if entry is not None and entry.in_progress:
            return f"run {entry.run_id} is under way in its phase {entry.phase}"
        if self._given_up == revision:
            return f"a person was called for revision {revision}; the next one is watched again"
        return ""

    def _act(
        self, run: Run, log: RunLog, held: HeldLease, fired: str, revision: int
    ) -> ExitCode | None:
        """Roll back; None where nothing was done, as others had changed the deployment.

        While another run has the model's lease, or the platform does not answer, it is tried again.
        """
        log.log_step(f"a trigger fired over {run.target}", fired, Outcome.FAIL)
        told = False
        while True:
            held.ensure()
            own = self.new_tools(self.clock.unstopped)
            evidence = watch_rollback(own, reason=fired, revision=revision)
            code = ExitCode(evidence.exit_code or 0)
            if own.releases.touched or code is ExitCode.NEEDS_PERSON:
                break
            if code is ExitCode.OK:
                self._log_once(log, "not rolled back", evidence.conclusion)
                return None
            self._log_once(log, "not rolled back yet", evidence.conclusion)
            if not told:
                subject = f"{run.target.model} in {run.target.environment} waits to be rolled back"
                text = f"{fired}. It waits: {evidence.conclusion}"
                log.notify("rollback", text, headline=subject)
                told = True
            self.clock.sleep(run.policy.watch.interval)
        self.on_end(evidence, own)
        if code is ExitCode.NEEDS_PERSON:
            self._given_up = revision
        return code

    def _log_once(self, log: RunLog, title: str, detail: str) -> bool:
        """Log a step, unless it was the last one logged here; return whether it was logged."""
        if (step := f"{title}: {detail}") == self._last_step:
            return False
        self._last_step = step
        log.log_step(title, detail)
        return True


def _changed(
    journal: Journal, held: HeldLease, entry: JournalEntry | None, edited: Callable[[], bool]
) -> Callable[[], bool]:
    """Return a check: was the lead lost, was it `edited`, or is the journal not `entry`."""

    def changed() -> bool:
        if not _leads(held):
            return True
        try:
            return journal.read() != entry or edited()
        except RolloutError:
            return False  # what cannot be read for now ends no watch

    return changed


def _leads(held: HeldLease) -> bool:
    """Return whether the lead is certainly ours; without an answer it is until it expires."""
    try:
        held.renew()
    except LeaseLostError:
        return False
    except RolloutError:
        return held.seconds_left() > 0
    return True
