"""A real HTTP server that keeps what it is sent and answers by a script, and a status page."""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from support.world import MODEL, World

from vllm_rollout.http_client import HttpAnswer
from vllm_rollout.policy.notifications import Channel, MessageKind
from vllm_rollout.rollout.http_delivery import Request
from vllm_rollout.rollout.leased_run import RunTools
from vllm_rollout.rollout.notification_format import Message
from vllm_rollout.rollout.status_page import OpenedStore, show

LOST = 0
"""In a script: the request is taken, and its answer is lost."""


@dataclass(frozen=True)
class Sent:
    """One request that came."""

    method: str
    path: str
    headers: dict[str, str]
    body: Any


@dataclass
class Recorder:
    """`script` has a status for each next request, then all are taken; 0 loses the answer.

    `answer` makes the answer's JSON of a request that is taken. `hold` is cleared to hold answers
    back.
    """

    url: str = ""
    script: list[int] = field(default_factory=list)
    answer: Callable[[Sent], Any] = lambda _sent: {}
    sent: list[Sent] = field(default_factory=list)
    hold: threading.Event = field(default_factory=threading.Event)

    def of(self, method: str) -> list[Sent]:
        return [each for each in self.sent if each.method == method]


@contextmanager
def recorder() -> Iterator[Recorder]:
    found = Recorder()
    found.hold.set()

    class Handler(BaseHTTPRequestHandler):
        def _any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            headers = {name.lower(): value for name, value in self.headers.items()}
            sent = Sent(self.command, self.path, headers, json.loads(body or "null"))
            found.sent.append(sent)
            found.hold.wait()
            status = found.script.pop(0) if found.script else 200
            answer = json.dumps(found.answer(sent)).encode() if status in (LOST, 200) else b""
            if status == LOST:
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True
                return
            self.send_response(status)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        do_GET = do_POST = do_PATCH = do_PUT = _any  # noqa: N815 - the server's names

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield found
    finally:
        found.hold.set()
        server.shutdown()
        thread.join()
        server.server_close()


@dataclass
class Statuspage:
    """What Atlassian's API keeps, as its documentation has it."""

    incidents: list[dict[str, Any]] = field(default_factory=list)
    on_said: Callable[[], None] = lambda: None

    def __call__(self, sent: Sent) -> Any:
        path = sent.path.partition("?")[0].removeprefix("/v1/pages/abc/incidents")
        if sent.method == "GET":
            return self.incidents[::-1]
        self.on_said()
        if sent.method == "POST":
            said = sent.body["incident"]
            self.incidents.append({"id": f"inc{len(self.incidents) + 1}", "updates": [], **said})
        incident = self.incidents[-1] if not path else self.at(path.removeprefix("/"))
        incident |= {"status": sent.body["incident"]["status"]}
        incident["updates"].append(sent.body["incident"]["body"])
        return {name: incident[name] for name in ("id", "status")}

    def ask(self, request: Request) -> HttpAnswer:
        """Take a request without a network, as `http_delivery.ask`."""
        body = json.loads(request.body or "null")
        said = self(Sent(request.method, request.path, dict(request.headers), body))
        return HttpAnswer(status=200, headers=(), body=json.dumps(said).encode(), seconds=0.0)

    def at(self, number: str) -> dict[str, Any]:
        (found,) = (each for each in self.incidents if each["id"] == number)
        return found


def shown_on(page: Statuspage, tools: RunTools, world: World) -> None:
    """Have each message of the run on the page at once, while the run goes on."""
    channel = Channel(name="page", kind="statuspage", page_id="abc", key_env="PAGE_KEY")
    store = world.platform.store
    opened = OpenedStore(store, model=MODEL, environment="production", channel="page")
    left = opened.read()

    def tell(kind: str, text: str, *, rollout: str = "", headline: str = "", **_: str) -> None:
        message = Message(
            kind=MessageKind(kind), model=MODEL, environment="production", text=text,
            run_id=tools.run.id, who="ada", reason="", build="", at=world.clock.now(),
            rollout=rollout, subject=headline,
        )  # fmt: skip
        show(message, channel, opened, page.ask, template=None, message_id="")

    tools.log.send = tools.log.announce = tell
    if left is not None:
        tools.log.close_left = lambda: tell(MessageKind.ENDED, "", rollout=left.run_id)
