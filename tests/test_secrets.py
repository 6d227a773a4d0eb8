"""One hostile gateway, seen by every gate: no output has the key that it echoes, nor a command."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from support.gate_runs import MODEL, run_gates, staging
from typer.testing import CliRunner

from vllm_rollout.cli import main
from vllm_rollout.model.evidence import read_evidence
from vllm_rollout.report.render import write_reports

CANARY = "Zq9-canary/key+of=ours"
"""As it may stand in a URL, and base64 of nothing."""
ORDERS = "\x1b]52;c;ZXZpbA==\x07\n::error::all is well\n##[error]so it is"


class Echo(BaseHTTPRequestHandler):
    """Refuses every request, and repeats what it was sent."""

    def answer(self) -> None:
        sent = self.headers.get("Authorization", "")
        text = f"bad key: {sent.removeprefix('Bearer ')} in {sent}; {ORDERS}"
        body = json.dumps({"error": {"message": text, "type": "auth"}}).encode()
        status = 200 if self.path == "/health" else 401 if self.command == "GET" else 400
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = answer  # noqa: N815 - the names that http.server asks for

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def gateway() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def test_a_key_that_a_gateway_echoes_and_its_commands_reach_no_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GATEWAY_CRED", CANARY)
    with gateway() as url:
        done = run_gates(tmp_path, *staging(url), "--policy-set", "api_key_env=GATEWAY_CRED")
        words = ["check", url, "--set", "api_key_env=GATEWAY_CRED"]
        checked = CliRunner().invoke(main.app, words)

    assert "400" in done.stdout
    (evidence,) = tmp_path.rglob("evidence.json")
    assert "[redacted]" in evidence.read_text()
    write_reports(read_evidence(evidence), tmp_path / MODEL)
    assert "[redacted]" in checked.output
    texts = {"terminal": done.stdout, "check": checked.output} | {
        str(file): file.read_text(errors="replace")
        for file in tmp_path.rglob("*")
        if file.is_file()
    }
    assert {Path(name).suffix for name in texts} >= {".html", ".xml", ".json"}
    for name, text in texts.items():
        assert CANARY not in text, name
        assert "Zq9" not in text, name
        if not name.endswith(".html"):  # pytest-html's own script has some
            assert "\x1b]" not in text, name
        for line in text.splitlines():
            assert not line.lstrip().startswith("::"), name
            assert "##[" not in line, name
