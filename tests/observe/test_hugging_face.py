"""Model access is asked of Hugging Face's API.

The API cannot be had here: what stands for it answers with the statuses and the X-Error-Code
headers that huggingface_hub, Hugging Face's own client, tells errors by.
"""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from vllm_rollout.model.errors import UnreachableError
from vllm_rollout.observe.hugging_face import model_access

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OPEN, GATED = "open/model", "gated/model"
PAGES = [
    f"/api/models/{model}/revision/{revision}"
    for model in (OPEN, GATED)
    for revision in ("main", "v1.0", "refs%2Fpr%2F1")
]


class Handler(BaseHTTPRequestHandler):
    """An open model, a gated one that the token `hf_good` may read, and nothing else."""

    def do_GET(self) -> None:
        good = self.headers.get("Authorization") == "Bearer hf_good"
        if self.path == f"/api/models/{OPEN}/auth-check":
            self.answer(200, {})
        elif self.path == f"/api/models/{GATED}/auth-check":
            self.answer(200 if good else 403, {}, "" if good else "GatedRepo")
        elif self.path in PAGES:
            self.answer(200, {"sha": COMMIT})
        elif "/revision/" in self.path:
            self.answer(404, {}, "RevisionNotFound")
        elif "/broken/" in self.path:
            self.answer(502, {})
        else:
            self.answer(401, {}, "RepoNotFound")

    def answer(self, status: int, body: object, code: str = "") -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        if code:
            self.send_header("X-Error-Code", code)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(autouse=True)
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}/")
        yield
        server.shutdown()


@pytest.mark.parametrize("revision", ["", "main", "v1.0", "refs/pr/1"])
def test_a_model_that_may_be_read_has_its_commit(revision: str) -> None:
    assert model_access(OPEN, revision=revision).commit == COMMIT
    assert model_access(GATED, revision=revision, token="hf_good").commit == COMMIT


@pytest.mark.parametrize(
    ("model", "revision", "token", "said"),
    [
        (GATED, "", "", "is gated, and the pods have no token"),
        (GATED, "", "hf_bad", "is gated, and the pods' token has no access"),
        ("no/model", "", "", "there is no no/model, or it is private"),
        (OPEN, "v9", "", "has no revision v9"),
        ("../../secrets", "", "", "is no model id"),
        ("a/b/c", "", "", "is no model id"),
        (OPEN, "main?x=1", "", "is no model id and revision"),
    ],
)
def test_a_model_that_may_not_be_read_is_a_problem(
    model: str, revision: str, token: str, said: str
) -> None:
    access = model_access(model, revision=revision, token=token)
    assert not access.commit
    assert said in access.problem


def test_an_answer_that_says_nothing_is_no_access(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnreachableError, match="502"):
        model_access("broken/model")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UnreachableError, match="cannot be asked"):
        model_access(OPEN)
