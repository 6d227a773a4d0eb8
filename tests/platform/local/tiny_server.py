"""A model server in miniature for the tests of the local platform.

It says which build it is, and has the faults these tests need: `--ready-after SECONDS`,
`--never-ready`, `--crash` (at start, after a last word), POST /crash, `--fork` (a child that
outlives it), and /slow, an endless stream that notes when its client has gone.
"""

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

parser = argparse.ArgumentParser()
parser.add_argument("--port", type=int, required=True)
parser.add_argument("--build", default="a")
parser.add_argument("--model", default="")
parser.add_argument("--ready-after", type=float, default=0.0)
parser.add_argument("--never-ready", action="store_true")
parser.add_argument("--crash", action="store_true")
parser.add_argument("--fork", action="store_true")
parser.add_argument("--gone-file", type=Path)
options = parser.parse_args()

sys.stdout.write(f"build {options.build}, key {os.environ.get('TINY_API_KEY', 'none')}\n")
sys.stdout.flush()
if options.crash:
    sys.stdout.write("out of memory, says the tiny server\n")
    sys.exit(3)
if options.fork:
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])

started = time.monotonic()
release_stream = threading.Event()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        if self.path == "/health":
            late = time.monotonic() - started < options.ready_after
            self.answer(503 if options.never_ready or late else 200, {})
        elif self.path == "/slow":
            self.slow()
        elif self.path == "/release":
            release_stream.set()
            self.answer(200, {})
        elif self.path == "/broken":
            self.broken()
        else:
            self.answer(200, {"path": self.path, "headers": dict(self.headers)})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path == "/crash":
            os._exit(1)
        self.answer(
            200,
            {"build": options.build, "model": options.model, "got": len(body), "pid": os.getpid()},
        )

    def answer(self, status: int, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def begin_stream(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

    def slow(self) -> None:
        """One event, the next ones only after /release; until the client goes, or that."""
        self.begin_stream()
        try:
            self.chunk(b"data: first\n\n")
            while not release_stream.wait(0.05):
                self.chunk(b": still here\n\n")
            self.chunk(b"data: last\n\n")
            self.wfile.write(b"0\r\n\r\n")
        except OSError:
            options.gone_file.write_text("the client has gone")
            self.close_connection = True

    def broken(self) -> None:
        self.begin_stream()
        self.chunk(b"data: first\n\n")
        self.close_connection = True


class Server(ThreadingHTTPServer):
    request_queue_size = 128
    daemon_threads = True


Server(("127.0.0.1", options.port), Handler).serve_forever()
