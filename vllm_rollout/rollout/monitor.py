"""The watch that stands: over production for hours or for good, whoever deployed what is there.

It rolls back as the watch of a rollout does, under the model's lease, with evidence and record. It
leaves a rollout that is under way alone: that one watches itself. Where several stand over one
deployment, one leads and the others wait for its lease.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from vllm_rollout.judge import Outcome
from vllm_rollout.model.deployment import Revision, newest_served
from vllm_rollout.model.errors import ExitCode, RolloutError
from vllm_rollout.model.evidence import Evidence
from vllm_rollout.model.observation import Observation
from vllm_rollout.model.units import format_duration
from vllm_rollout.platform.base import ConflictError
from vllm_rollout.rollout.clock import Clock
from vllm_rollout.rollout.context import Context
from vllm_rollout.rollout.journal import JournalEntry
from vllm_rollout.rollout.lease import HeldLease, LeaseLostError, hold
from vllm_rollout.rollout.manual_rollback import watch_rollback
from vllm_rollout.rollout.soak_samples import Sampling


class Stopped(Exception):  # noqa: N818 - no error: somebody asked for it
    """The watch was asked to end while it waited."""


class StoppableClock:
    """A clock whose sleep ends, by `Stopped`, as soon as `stop` is set.

    `wait` does the waiting: for so many seconds at most, and no longer than until it is set.
    """

    def __init__(
        self, clock: Clock, stop: threading.Event, wait: Callable[[float], object] | None = None
    ) -> None:
        self._clock, self._stop, self._wait = clock, stop, wait or stop.wait

    def now(self) -> datetime:
        """Wall-clock time, with its zone."""
        return self._clock.now()

    def monotonic(self) -> float:
        """Seconds that never run backwards."""
        return self._clock.monotonic()

    def sleep(self, duration: timedelta) -> None:
        """Wait.

        Raises:
            Stopped: the watch was asked to end.
        """
        if not self._stop.is_set():
            self._wait(max(0.0, duration.total_seconds()))
        if self._stop.is_set():
            raise Stopped


@dataclass(slots=True, kw_only=True)
class Monitor:
    """Watches one deployment until its clock is stopped or its time is over.

    `new_context` makes the tools of one run, and is asked again for each rollback; `on_end` is
    given what a rollback left. A rollback that was begun is finished before a stop is heeded.
    """

    new_context: Callable[[], Context]
    on_end: Callable[[Evidence, Context], None]
    clock: StoppableClock
    _given_up: int | None = field(default=None)
    """A revision that is not rolled back (again): a person was called."""
    _said: str = field(default="")

    def run(self, duration: timedelta | None) -> ExitCode:
        """Watch for `duration`, None for good; how it ended.

        OK when nothing happened or all is well again for good; with a duration it ends with the
        first rollback, by its code.
        """
        context = self.new_context()
        context.clock = clock = self.clock
        until = None if duration is None else clock.monotonic() + duration.total_seconds()
        name = f"watch/{context.target.release}"
        try:
            while until is None or clock.monotonic() < until:
                try:
                    with hold(
                        context.platform.store,
                        name,
                        clock=clock,
                        on_wait=lambda text: self._say(context, "waiting to lead", text),
                    ) as held:
                        code = self._lead(context, held, until)
                except ConflictError as error:
                    self._say(context, "another watch leads", str(error))
                except RolloutError as error:
                    self._say(context, "the watch waits", f"{error}. {error.remedy}".rstrip())
                else:
                    if code is not None:
                        return code
                clock.sleep(context.policy.watch.interval)
        except Stopped:
            context.say("the watch was asked to end", outcome=Outcome.PASS)
            return ExitCode.OK
        context.say("the time of the watch is over", outcome=Outcome.PASS)
        return ExitCode.OK

    def _lead(self, context: Context, held: HeldLease, until: float | None) -> ExitCode | None:
        """Watch while the lead lasts; a code when the watch is over, None to begin anew.

        Raises:
            RolloutError: the lead is lost, or nothing can be found out for now.
        """
        while until is None or self.clock.monotonic() < until:
            held.ensure()
            entry = context.journal.read()
            history = context.platform.history(context.target)
            serving = newest_served(history)
            if serving is None or (why := self._why_not(entry, serving.number)):
                what = why if serving else "nothing is deployed"
                self._say(context, f"not watching {context.target}", what)
                context.clock.sleep(context.policy.watch.interval)
                continue
            left = None if until is None else timedelta(seconds=until - self.clock.monotonic())
            self._say(
                context,
                f"watching {context.target}, revision {serving.number}",
                f"for {format_duration(left)}" if left else "until told to stop",
            )
            end = context.watch(
                context.target,
                left,
                interrupted=self._changed(context, held, entry),
                on_sight=_soak_samples(context, serving),
            )
            if not end.fired:
                continue
            code = self._act(context, held, end.fired, serving.number)
            if code is not None and until is not None:
                return code
        return None

    def _why_not(self, entry: JournalEntry | None, revision: int) -> str:
        """Why nothing is watched now; empty where it is."""
        if entry is not None and entry.in_progress:
            return f"run {entry.run_id} is under way in its phase {entry.phase}"
        if self._given_up == revision:
            return f"a person was called for revision {revision}; the next one is watched again"
        return ""

    @staticmethod
    def _changed(
        context: Context, held: HeldLease, entry: JournalEntry | None
    ) -> Callable[[], bool]:
        """Whether the lead was lost or the journal is another than `entry` by now."""

        def changed() -> bool:
            if not _leads(held):
                return True
            try:
                return context.journal.read() != entry
            except RolloutError:
                return False  # what cannot be read for now ends no watch

        return changed

    def _act(self, context: Context, held: HeldLease, fired: str, revision: int) -> ExitCode | None:
        """Roll back; None where nothing was done, as others had changed the deployment.

        While another run has the model's lease, or the platform does not answer, it is tried again.
        """
        context.say(f"a trigger fired over {context.target}", fired, Outcome.FAIL)
        while True:
            held.ensure()
            own = self.new_context()
            evidence = watch_rollback(own, reason=fired, revision=revision)
            code = ExitCode(evidence.exit_code or 0)
            if own.touched or code is ExitCode.NEEDS_PERSON:
                break
            if code is ExitCode.OK:
                return None
            self._say(context, "not rolled back yet", evidence.conclusion)
            context.notify("rollback", f"{fired}. It waits: {evidence.conclusion}")
            context.clock.sleep(context.policy.watch.interval)
        self.on_end(evidence, own)
        if code is ExitCode.NEEDS_PERSON:
            self._given_up = revision
        return code

    def _say(self, context: Context, title: str, detail: str) -> None:
        """Say it, unless it was the last thing said."""
        if (said := f"{title}: {detail}") != self._said:
            self._said = said
            context.say(title, detail)


def _soak_samples(context: Context, revision: Revision) -> Callable[[Observation], None]:
    """Keeps what the watch sees for the soak of `revision`, where that goes by samples."""
    target = context.target
    sampling = Sampling.of(context.platform.store, context.policy, target, revision)

    def keep(sight: Observation) -> None:
        if sampling is None:
            return
        try:
            sampling.see(context.clock.now(), sight.replicas, sight.probes)
        except RolloutError as error:
            context.reporter.progress(f"no sample for the soak: {error}")

    return keep


def _leads(held: HeldLease) -> bool:
    """Whether the lead is surely ours; a store that does not answer leaves it to run out."""
    try:
        held.renew()
    except LeaseLostError:
        return False
    except RolloutError:
        return held.seconds_left() > 0
    return True
