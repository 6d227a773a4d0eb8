"""Sends notifications beside a rollout: nothing here delays it or ends it."""

import queue
import threading
import time
from collections.abc import Callable
from datetime import datetime

from vllm_rollout.model.errors import RolloutError
from vllm_rollout.policy.notifications import Channel, MessageKind, Notifications
from vllm_rollout.rollout.delivery import deliver
from vllm_rollout.rollout.notification_format import Message


class Notifier:
    """Messages of one run. Each channel has a thread and its messages arrive in order.

    `tell` returns at once; `close` waits, for the policy's deadline at most, and returns what did
    not arrive.
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
    ) -> None:
        self._rules, self._now = rules, now
        self._about = {
            "model": model,
            "environment": environment,
            "run_id": run_id,
            "who": who,
            "reason": reason,
        }
        self._sent: set[tuple[str, str]] = set()
        self._channels = [_Queue(channel, rules) for channel in rules.channels]

    def tell(self, kind: str, text: str, build: str = "") -> None:
        """Send a message to every channel that wants its kind; does not wait and does not raise.

        `kind` is one of `MessageKind`; `build` the digest of the build it is about. A
        message that was sent before in this run is not sent again.
        """
        if (kind, text) in self._sent:
            return
        self._sent.add((kind, text))
        short = build.removeprefix("sha256:")[:12]
        message = Message(
            kind=MessageKind(kind), text=text, build=short, at=self._now(), **self._about
        )
        for channel in self._channels:
            channel.put(message)

    def close(self) -> list[str]:
        """Wait for messages under way; return a line for each that is not known to have arrived.

        More may be sent afterwards, and it may be closed again.
        """
        deadline = time.monotonic() + self._rules.deadline_seconds
        return [line for channel in self._channels for line in channel.settle(deadline)]


class _Queue:
    """One channel's messages, sent one after the other by a thread of its own."""

    def __init__(self, channel: Channel, rules: Notifications) -> None:
        self._channel, self._rules = channel, rules
        self._waiting: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._lock = threading.Condition()
        self._open: list[Message] = []
        self._failed: list[str] = []
        self._thread: threading.Thread | None = None

    def put(self, message: Message) -> None:
        if message.kind not in self._channel.messages:
            return
        with self._lock:
            self._open.append(message)
        if self._thread is None:
            # A daemon: an end of the run that does not wait is no reason to hang.
            self._thread = threading.Thread(
                target=self._work, name=f"messages to {self._channel.name}", daemon=True
            )
            self._thread.start()
        self._waiting.put(message)

    def settle(self, deadline: float) -> list[str]:
        with self._lock:
            self._lock.wait_for(lambda: not self._open, max(0.0, deadline - time.monotonic()))
            late = [
                self._line(message, "not delivered in time; it may still arrive")
                for message in self._open
            ]
            failed, self._failed = self._failed + late, []
            return failed

    def _work(self) -> None:
        while True:
            message = self._waiting.get()
            problem = ""
            try:
                deliver(message, self._channel, self._rules)
            except RolloutError as error:
                problem = self._line(message, str(error))
            except Exception as error:  # noqa: BLE001 - reported, and the next message is sent
                problem = self._line(message, type(error).__name__)
            with self._lock:
                self._open.remove(message)
                if problem:
                    self._failed.append(problem)
                self._lock.notify_all()

    def _line(self, message: Message, problem: str) -> str:
        return f"{message.kind} to {self._channel.name}: {problem}"
