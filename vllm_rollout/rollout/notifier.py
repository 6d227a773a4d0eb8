"""Sends notifications beside a rollout: nothing here delays it or ends it.

A message that does not arrive is named in the next one of its channel, whatever run sends that, and
by `status` until then.
"""

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial

from vllm_rollout.model.deployment import short_digest
from vllm_rollout.model.errors import RolloutError
from vllm_rollout.model.text import printable
from vllm_rollout.platform.base import ConflictError
from vllm_rollout.platform.reader import StoreReader
from vllm_rollout.platform.writer import Store
from vllm_rollout.policy.notifications import Channel, MessageKind, Notifications
from vllm_rollout.rollout.delivery import Pause, deliver
from vllm_rollout.rollout.notification_format import Message, shortened
from vllm_rollout.rollout.status_page import OpenedStore

_MOST_MISSED = 20
_LONGEST_MISSED = 200
_TRIES = 5


def messages_missed(stores: Iterable[StoreReader], model: str) -> Mapping[str, Sequence[str]]:
    """Return the messages about `model` that did not arrive and were not made up for, by channel.

    Raises: as the stores.
    """
    found: dict[str, list[str]] = {}
    for store in stores:
        entry = store.read(_key(model))
        for channel, lines in (entry.value if entry else {}).items():
            known = found.setdefault(channel, [])
            known += [line for line in map(printable, lines) if line not in known]
    return found


def _key(model: str) -> str:
    return f"undelivered/{model}"


def _keep_missed(
    store: Store, model: str, channel: str, said: Sequence[str], missed: Sequence[str]
) -> None:
    """Keep what a channel missed in the store, beside what other runs have kept meanwhile."""
    key = _key(model)
    for _ in range(_TRIES):
        entry = store.read(key)
        value = dict(entry.value) if entry else {}
        known = map(printable, value.pop(channel, ()))
        before = [line for line in known if line not in (*said, *missed)]
        if lines := [*before, *missed][-_MOST_MISSED:]:
            value[channel] = lines
        with suppress(ConflictError):
            store.write(key, value, expect=entry.version if entry else None)
            return


class Notifier:
    """Messages of one run. Each channel has a thread and its messages arrive in order.

    `tell` returns at once; `undelivered` returns what did not arrive, and waits for messages under
    way only where it is asked to. `store` keeps what did not arrive, for later runs and `status`,
    and what is open on status pages. `serves_users` is whether the environment is the last one;
    `expected` is how long a rollout holds its steps and watches.
    """

    def __init__(
        self,
        rules: Notifications,
        *,
        model: str,
        environment: str,
        run_id: str,
        who: str,
        reason: str,
        now: Callable[[], datetime],
        store: Store | None = None,
        pause: Pause | None = None,
        serves_users: bool = True,
        expected: timedelta = timedelta(),
    ) -> None:
        self._rules, self._now, self._store, self._model = rules, now, store, model
        self._message = partial(
            Message,
            model=model,
            environment=environment,
            run_id=run_id,
            who=printable(who),
            reason=printable(reason),
            expected=expected,
        )
        missed: Mapping[str, Sequence[str]] = {}
        if store is not None and rules.channels:
            with suppress(RolloutError):  # the run itself finds out, if it needs the store
                missed = messages_missed([store], model)
        where = {"model": model, "environment": environment}
        self._channels = [
            _Queue(
                channel,
                rules,
                missed.get(channel.name, ()),
                pause,
                OpenedStore(store, channel=channel.name, **where),
            )
            for channel in rules.channels
            if channel.hears_of(environment, serves_users=serves_users)
        ]

    def tell(
        self, kind: str, text: str, *, build: str = "", headline: str = "", rollout: str = ""
    ) -> None:
        """Send a message to every channel that wants its kind; does not wait and does not raise.

        `kind` is one of `MessageKind`; `build` the digest of the build it is about; `headline`
        takes the place of the kind's own; `rollout` is the run that began the rollout, where it is
        another.
        """
        message = self._message(
            kind=MessageKind(kind),
            text=printable(text),
            build=short_digest(build),
            at=self._now(),
            subject=printable(headline),
            rollout=rollout,
        )
        for channel in self._channels:
            channel.put(message)

    def close_left(self) -> None:
        """Have status pages close what an earlier run has left open there, as it is over.

        What is open was read when this run began: no later one's is closed.
        """
        text = "The run that began it is over."
        message = self._message(kind=MessageKind.ENDED, text=text, build="", at=self._now())
        for channel in self._channels:
            if channel.left:
                channel.put(replace(message, rollout=channel.left))

    def undelivered(self, *, wait: bool) -> list[str]:
        """Return a line for each message that is not known to have arrived, each line once.

        With `wait` messages under way have the policy's deadline; those that are still under way
        then are among them. More may be sent afterwards.
        """
        deadline = time.monotonic() + self._rules.deadline_seconds
        lines = []
        for channel in self._channels:
            lines += channel.settle(deadline if wait else None)
            said, missed = channel.changes()
            if self._store is not None and (said or missed):
                with suppress(RolloutError):  # the lines are returned in any case
                    _keep_missed(self._store, self._model, channel.name, said, missed)
        return lines


class _Queue:
    """One channel's messages, sent one after the other by a thread of its own.

    A message that did not arrive at once is given up for a newer one, which names it; what pages
    somebody is not, as the newer one may page nobody. `left` is the run that has left something
    open there.
    """

    def __init__(
        self,
        channel: Channel,
        rules: Notifications,
        missed: Sequence[str],
        pause: Pause | None,
        opened: OpenedStore,
    ) -> None:
        self.name, self.left = channel.name, ""
        self._channel, self._rules, self._opened = channel, rules, opened
        if channel.is_page:
            with suppress(RolloutError):  # the run itself finds out, if it needs the store
                found = opened.read()
                self.left = found.run_id if found else ""
        self._pause = pause
        self._lock = threading.Condition()
        self._open: list[Message] = []
        self._late: dict[Message, str] = {}
        self._failed: list[str] = []
        self._missed = list(missed)
        self._kept = list(missed)
        """What the store has of it."""
        self._thread: threading.Thread | None = None

    def put(self, message: Message) -> None:
        if not self._channel.wants(message.kind):
            return
        with self._lock:
            self._open.append(message)
            self._lock.notify_all()
        if self._thread is None:
            # A daemon: an end of the run that does not wait is no reason to hang.
            self._thread = threading.Thread(
                target=self._work, name=f"messages to {self.name}", daemon=True
            )
            self._thread.start()

    def settle(self, deadline: float | None) -> list[str]:
        with self._lock:
            if deadline is not None:
                self._lock.wait_for(lambda: not self._open, max(0.0, deadline - time.monotonic()))
                for message in self._open:
                    if message not in self._late:
                        self._late[message] = self._give_up(
                            message, "not delivered in time; it may still arrive"
                        )
            failed, self._failed = self._failed, []
            return failed

    def changes(self) -> tuple[list[str], list[str]]:
        """Return what was missed and is made up for since the last time, and what is missed now."""
        with self._lock:
            said = [line for line in self._kept if line not in self._missed]
            missed = [line for line in self._missed if line not in self._kept]
            self._kept = list(self._missed)
            return said, missed

    def _work(self) -> None:
        while True:
            with self._lock:
                self._lock.wait_for(lambda: bool(self._open))
                message = self._open[0]
                carried = list(self._missed)
            problem = ""
            try:
                deliver(
                    replace(message, missed=tuple(carried)),
                    self._channel,
                    self._rules,
                    pause=self._pause or self._pause_of(message),
                    opened=self._opened,
                )
            except RolloutError as error:
                problem = str(error)
            except Exception as error:  # noqa: BLE001 - reported, and the next message is sent
                problem = type(error).__name__
            with self._lock:
                self._open.remove(message)
                late = self._late.pop(message, "")
                if not problem:
                    said = (*carried, late)
                    self._missed = [line for line in self._missed if line not in said]
                elif not late:
                    self._give_up(message, problem)
                self._lock.notify_all()

    def _give_up(self, message: Message, problem: str) -> str:
        """Note that a message did not arrive, and return its line of what was missed."""
        problem = printable(problem)
        self._failed.append(f"{message.kind} to {self.name}: {problem}")
        text = shortened(message.text, _LONGEST_MISSED)
        line = f"{message.at:%Y-%m-%d %H:%M:%S %Z} {message.headline}: {text} ({problem})"
        self._missed = [*self._missed, line][-_MOST_MISSED:]
        return line

    def _pause_of(self, message: Message) -> Pause:
        return self._newer_within if self._channel.gives_way(message.kind) else _wait

    def _newer_within(self, seconds: float) -> bool:
        with self._lock:
            return self._lock.wait_for(lambda: len(self._open) > 1, seconds)


def _wait(seconds: float) -> bool:
    time.sleep(seconds)
    return False
