"""A model server that answers whatever a test makes up, in a thread of this process."""

import itertools
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

MODEL = "llama-2-7b"


@dataclass
class Stub:
    """`say` gives the text of each answer by the request's body.

    `api` is the only endpoint there is. `asked` are the requests: path, headers and body.
    """

    say: Callable[[dict[str, Any]], str] = lambda _body: " It is Paris."
    api: str = "/v1/completions"
    headers: dict[str, str] = field(default_factory=dict)
    status: int = 200
    ids: Iterator[str] = field(default_factory=lambda: map("cmpl-{}".format, itertools.count()))
    created: int | None = 1795432565
    cache: Callable[[dict[str, Any]], str] | None = None
    """The key by which answers are kept and given again."""
    asked: list[tuple[str, dict[str, str], dict[str, Any]]] = field(default_factory=list)
    connections: set[tuple[str, int]] = field(default_factory=set)
    url: str = ""
    kept: dict[str, bytes] = field(default_factory=dict)

    def answer(self, body: dict[str, Any]) -> bytes:
        key = self.cache(body) if self.cache else ""
        if key in self.kept:
            return self.kept[key]
        text, tokens = self.say(body), body["max_tokens"]
        choice: dict[str, Any] = {"index": 0, "finish_reason": "length"}
        chat, stream = "messages" in body, body["stream"]
        part = {"role": "assistant", "content": text}
        choice |= {"delta" if stream else "message": part} if chat else {"text": text}
        usage = {"prompt_tokens": 5, "completion_tokens": tokens, "total_tokens": 5 + tokens}
        said = {"id": next(self.ids), "choices": [choice], "usage": usage}
        if self.created is not None:
            said["created"] = self.created
        made = json.dumps(said).encode()
        if stream:
            made = b"data: " + made + b"\n\ndata: [DONE]\n\n"
        if self.cache:
            self.kept[key] = made
        return made


@contextmanager
def serving(stub: Stub) -> Iterator[Stub]:
    """Serve `stub` on a free port; its `url` says where."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def send(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            for name, value in stub.headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            served = {"data": [{"id": MODEL}]}
            self.send(200, json.dumps(served).encode() if self.path == "/v1/models" else b"")

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            stub.asked.append((self.path, dict(self.headers), body))
            stub.connections.add(self.client_address)
            if self.path != stub.api:
                self.send(404, b'{"detail":"Not Found"}')
            elif stub.status != 200:
                self.send(stub.status, b'{"error": {"message": "engine dead", "code": 500}}')
            else:
                self.send(200, stub.answer(body))

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = Thread(target=lambda: server.serve_forever(poll_interval=0.01))
        thread.start()
        stub.url = f"http://127.0.0.1:{server.server_port}"
        try:
            yield stub
        finally:
            server.shutdown()
            thread.join()
