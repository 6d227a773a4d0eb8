"""Images are looked up in a real registry, with and without a password."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from cluster.registry import PASSWORD, USER, Registry, running_registry

from vllm_rollout.model.errors import UnreachableError
from vllm_rollout.model.image_name import parse_image
from vllm_rollout.observe.image_registry import find_image
from vllm_rollout.ports import free_port


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with running_registry(tmp_path_factory.mktemp("open")) as registry:
        yield registry


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with running_registry(tmp_path_factory.mktemp("guarded"), password=True) as registry:
        yield registry


def test_an_image_that_is_there_has_its_digest(registry: Registry) -> None:
    digest = registry.push("team/vllm", "v1")
    assert find_image(parse_image(f"{registry.host}/team/vllm:v1")).digest == digest
    assert find_image(parse_image(f"{registry.host}/team/vllm@{digest}")).digest == digest
    moved = registry.push("team/vllm", "v1", content="moved")
    assert find_image(parse_image(f"{registry.host}/team/vllm:v1")).digest == moved != digest


@pytest.mark.parametrize("name", ["a/vllm:none", "other/vllm:v1", f"a/vllm@sha256:{'0' * 64}"])
def test_an_image_that_is_not_there_is_a_problem(registry: Registry, name: str) -> None:
    registry.push("a/vllm", "v1")
    found = find_image(parse_image(f"{registry.host}/{name}"))
    assert not found.digest
    assert "has no" in found.problem


def test_a_guarded_image_takes_the_right_credentials(guarded: Registry) -> None:
    digest = guarded.push("vllm", "v1")
    image = parse_image(f"{guarded.host}/vllm:v1")
    assert "401" in find_image(image).problem
    assert "401" in find_image(image, credentials=[(USER, "wrong")]).problem
    assert find_image(image, credentials=[(USER, "wrong"), (USER, PASSWORD)]).digest == digest


def test_no_registry_is_no_answer() -> None:
    host = f"127.0.0.1:{free_port()}"
    with pytest.raises(UnreachableError, match=host):
        find_image(parse_image(f"{host}/vllm:v1"))


@pytest.mark.parametrize(
    ("status", "body", "headers", "said"),
    [
        (200, b"<html>a login page</html>", {}, "no manifest"),
        (503, b"", {}, "503"),
        (401, b"", {"WWW-Authenticate": 'Bearer realm="http://evil.example/"'}, "not https"),
    ],
)
def test_what_answers_otherwise_is_no_registry(
    status: int, body: bytes, headers: dict[str, str], said: str
) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            with pytest.raises(UnreachableError, match=said):
                find_image(parse_image(f"127.0.0.1:{server.server_address[1]}/vllm:v1"))
        finally:
            server.shutdown()


def test_content_that_is_not_what_its_digest_says_is_a_problem(
    registry: Registry, tmp_path_factory: pytest.TempPathFactory
) -> None:
    digest = registry.push("team/broken", "v1")
    base = Path(str(tmp_path_factory.getbasetemp()))
    (stored,) = base.glob(f"open0/images/**/blobs/sha256/*/{digest.removeprefix('sha256:')}/data")
    stored.write_text(stored.read_text() + " ")
    found = find_image(parse_image(f"{registry.host}/team/broken@{digest}"))
    assert not found.digest
    assert found.problem
