"""Mistakes of a first hour: each one's outcome, reason and remedy, in one sentence."""

import json
import os
import re
import socket
import ssl
import xml.etree.ElementTree as ET
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import cache
from html import unescape
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trustme
from support.ci_jobs import github_job
from support.gate_runs import evidence_in, run_gates, staging
from support.hostile import Script, hostile
from support.world import MODEL, STAGING
from typer.testing import CliRunner

from vllm_rollout import gates_api
from vllm_rollout.cli.main import app
from vllm_rollout.judge import Outcome, Verdict
from vllm_rollout.pytest_plugin import load_progress_line
from vllm_rollout.serving import Servers, health_and_a_token, sample_inference
from vllm_rollout.settings import Settings, load_settings

KEY = "VLLM_ROLLOUT_API_KEY"
FAIL, UNKNOWN = Outcome.FAIL, Outcome.INCONCLUSIVE

Answer = tuple[int, str, bytes]
"""Status, headers and body."""
Server = Callable[[str, dict[str, Any]], Answer]
"""Answers a path, and the JSON that was posted there."""


def scripted(server: Server) -> Script:
    """A server of this process that answers as `server` says, and closes the connection."""

    def script(connection: socket.socket, request: bytes) -> None:
        head, _, body = request.partition(b"\r\n\r\n")
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                while len(body) < int(line.partition(b":")[2]):
                    body += connection.recv(65536)
        status, headers, said = server(head.split()[1].decode(), json.loads(body or b"{}"))
        start = f"HTTP/1.1 {status} X\r\nConnection: close\r\n{headers}\r\n"
        connection.sendall(f"{start}Content-Length: {len(said)}\r\n\r\n".encode() + said)

    return script


def as_json(status: int, said: Any) -> Answer:
    return status, "Content-Type: application/json", json.dumps(said).encode()


def error(status: int, message: str) -> Answer:
    return as_json(status, {"error": {"message": message, "code": status}})


def completion(body: dict[str, Any]) -> Answer:
    usage = {"prompt_tokens": 5, "completion_tokens": body["max_tokens"]}
    choice = {"index": 0, "text": " It is Paris.", "finish_reason": "length"}
    if not body["stream"]:
        return as_json(200, {"choices": [choice], "usage": usage})
    events = [{"choices": [choice]}, {"choices": [], "usage": usage}]
    return stream(events if body.get("stream_options") else events[:1])


def stream(events: list[Any]) -> Answer:
    said = "".join(f"data: {json.dumps(each)}\n\n" for each in events) + "data: [DONE]\n\n"
    return 200, "Content-Type: text/event-stream", said.encode()


def vllm(path: str, body: dict[str, Any], *, names: tuple[str, ...] = (MODEL,)) -> Answer:
    """What vLLM answers that serves `names` by completions."""
    if path == "/health":
        return 200, "X: y", b""
    if path == "/v1/models":
        return as_json(200, {"data": [{"id": name} for name in names]})
    if path != "/v1/completions":
        return as_json(404, {"detail": "Not Found"})
    if body["model"] not in names:
        return error(404, f"The model `{body['model']}` does not exist. Valid aliases: {names[0]}.")
    return completion(body)


def posted(answer: Answer) -> Server:
    """Answer every request for tokens so, and the rest as vLLM does."""
    return lambda path, body: answer if path == "/v1/completions" else vllm(path, body)


PAGE = (
    200,
    "Content-Type: text/html; charset=utf-8",
    b"<!doctype html>\n<html><head><title>Acme\n portal</title></head></html>",
)
BAD_GATEWAY = (502, "Content-Type: text/html", b"<html><title>502 Bad Gateway</title></html>")


def keyless(path: str, body: dict[str, Any]) -> Answer:
    return vllm(path, body) if path == "/health" else as_json(401, {"error": "Unauthorized"})


def chat_only(path: str, body: dict[str, Any]) -> Answer:
    if path != "/v1/chat/completions":
        return as_json(404, {"detail": "Not Found"}) if "completions" in path else vllm(path, body)
    message = {"role": "assistant", "content": "Hi"}
    usage = {"prompt_tokens": 5, "completion_tokens": 1}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return as_json(200, {"choices": [choice], "usage": usage})


def pooling(path: str, body: dict[str, Any]) -> Answer:
    if path == "/v1/embeddings":
        return as_json(200, {"data": [{"embedding": [0.1]}]})
    refused = error(400, "The model does not support Completions API")
    return refused if "completions" in path else vllm(path, body)


def without_usage(path: str, body: dict[str, Any]) -> Answer:
    return vllm(path, {**body, "stream_options": None})


def login(path: str, body: dict[str, Any]) -> Answer:
    return 302, f"Location: https://sso.example.com{path}", b""


MISTAKES: dict[str, tuple[Server, Outcome, str, str]] = {
    "no key": (
        keyless,
        UNKNOWN,
        "{url} asks for a bearer key (HTTP 401), and VLLM_ROLLOUT_API_KEY is not set",
        "Put the server's key into the environment variable VLLM_ROLLOUT_API_KEY.",
    ),
    "a key without the right": (
        posted(error(403, "key not allowed to access model")),
        UNKNOWN,
        (
            "{url} refuses the request (HTTP 403 key not allowed to access model), and "
            "VLLM_ROLLOUT_API_KEY is not set"
        ),
        "Put a key that may use this model into the environment variable VLLM_ROLLOUT_API_KEY.",
    ),
    "LiteLLM without a database, another key": (
        posted(error(400, "No connected db.")),
        UNKNOWN,
        "{url} asks for a bearer key (HTTP 400), and VLLM_ROLLOUT_API_KEY is not set",
        "Put the server's key into the environment variable VLLM_ROLLOUT_API_KEY.",
    ),
    "wrong model": (
        lambda path, body: vllm(path, body, names=("meta-llama/Llama-2-7b", "lora")),
        FAIL,
        "{url} serves meta-llama/Llama-2-7b, lora, not llama-2-7b",
        (
            "Name what it serves, --model meta-llama/Llama-2-7b; or serve it under its name, "
            "--served-model-name llama-2-7b; or set `models.llama-2-7b.served_as: "
            "meta-llama/Llama-2-7b` in the policy."
        ),
    ),
    "web page everywhere": (
        lambda _path, _body: PAGE,
        UNKNOWN,
        "{url}/health answered text/html (“Acme portal”): is this vLLM's address?",
        "Name the server's own address, with --base-url or `service_url`.",
    ),
    "web page in place of tokens": (
        posted(PAGE),
        UNKNOWN,
        "{url}/v1/completions answered text/html (“Acme portal”): is this vLLM's address?",
        "Name the server's own address, with --base-url or `service_url`.",
    ),
    "redirect": (
        login,
        UNKNOWN,
        "{url} answers 302, a redirect to https://sso.example.com/health: is this vLLM's address?",
        "Name the server's own address, with --base-url or `service_url`.",
    ),
    "chat only": (
        chat_only,
        FAIL,
        (
            "/v1/completions was asked, which {url} does not offer (404 Not Found); it offers "
            "/v1/chat/completions"
        ),
        "Set `api: chat` in the policy.",
    ),
    "pooling model": (
        pooling,
        FAIL,
        (
            "/v1/completions was asked, which {url} does not offer (400 The model does not support "
            "Completions API); it offers /v1/embeddings"
        ),
        (
            "Name a model that generates text: embedding and pooling models give no tokens, and "
            "cannot be gated."
        ),
    ),
    "500 with a known text": (
        posted(error(500, "CUDA error: an illegal memory access was encountered")),
        FAIL,
        "{url}/v1/completions answered 500 CUDA error: an illegal memory access was encountered",
        (
            "The GPU, or a kernel on it, has failed: look at the node's GPU (nvidia-smi, Xid in "
            "dmesg); elsewhere it is a bug of the build."
        ),
    ),
    "500 with another text": (
        posted(error(500, "EngineCore encountered an issue.")),
        FAIL,
        "{url}/v1/completions answered 500 EngineCore encountered an issue.",
        (
            "The server failed: read its log of that time, where the first error counts, and fix "
            "that before the next attempt."
        ),
    ),
    "gateway without a server": (
        posted(BAD_GATEWAY),
        FAIL,
        "{url}/v1/completions answered 502 text/html (“502 Bad Gateway”)",
        (
            "See why the gateway found no server that answers: replicas that restarted or were not "
            "ready, or its own limits on connections and time."
        ),
    ),
    "context too short": (
        posted(error(400, "max_tokens=8 cannot be greater than max_model_len=4.")),
        FAIL,
        "{url}/v1/completions answered 400 max_tokens=8 cannot be greater than max_model_len=4.",
        (
            "Ask for less, or serve a longer context: the prompt and `max_tokens` together have to "
            "fit `--max-model-len` (`load.max_tokens`, `load.traffic.workload`, `gates.inference`)."
        ),
    ),
    "stream without usage": (
        without_usage,
        FAIL,
        (
            "{url}/v1/completions: the stream has no usage, which stream_options.include_usage "
            "asks for"
        ),
        (
            "Let the server, or the gateway before it, honour `stream_options: {include_usage: "
            "true}`: else nobody can count the tokens."
        ),
    ),
}


@cache
def settings() -> Settings:
    return load_settings(base_url="http://x", overrides={"environments.staging.replicas": 1})


def first_that_is_no_pass(url: str) -> Verdict:
    gates = settings().policy.environments["staging"].gates
    assert gates.health
    assert gates.inference
    with ExitStack() as clients:
        servers = Servers.of(replace(settings(), base_url=url), STAGING, clients)
        checks = [health_and_a_token(servers, gates.health)]
        checks += [
            sample_inference(servers, gates.inference, lambda *_: None, stream=stream)
            for stream in (False, True)
        ]
        return next(verdict for check in checks for verdict in check if not verdict.passed)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_each_mistake_has_one_outcome_reason_and_remedy(mistake: str) -> None:
    server, outcome, reason, remedy = MISTAKES[mistake]
    with hostile(scripted(server)) as url:
        found = first_that_is_no_pass(url)
    assert found.reason == reason.format(url=url)
    assert (found.outcome, found.remedy) == (outcome, remedy)


LIMIT = {"limit_seconds": 3.0, "confidence": 0.95}
FRACTIONS: dict[str, tuple[Callable[[], object], str]] = {
    "percentile": (
        lambda: gates_api.percentile_verdict([1.0] * 100, percentile=0.95, **LIMIT),
        "percentile 0.95 is a fraction: write 95 for P95",
    ),
    "percentile in order": (
        lambda: gates_api.percentile_verdict_in_order([1.0], percentile=0.5, burst=1, **LIMIT),
        "percentile 0.5 is a fraction: write 50 for P50",
    ),
    "percentile of buckets": (
        lambda: gates_api.bucket_verdict({3.0: 1, float("inf"): 1}, percentile=0.999, **LIMIT),
        "write 99.9 for P99.9",
    ),
    "percentile so far": (
        lambda: gates_api.SequentialPercentile(percentile=0.95, **LIMIT),
        "write 95 for P95",
    ),
    "percentile compared": (
        lambda: gates_api.compare_latency(
            [1.0], [1.0], percentile=0.95, largest_ratio=1.1, confidence=0.95
        ),
        "write 95 for P95",
    ),
    "percentile of the generator's lag": (
        lambda: gates_api.LoadResult.lag_percentile(SimpleNamespace(requests=()), 0.99),  # type: ignore[arg-type]
        "write 99 for P99",
    ),
    "percentile in a policy": (
        lambda: gates_api.Latency(percentile=0.95, limit="3s"),  # type: ignore[arg-type]
        "write 95 for P95",
    ),
    "confidence": (
        lambda: gates_api.rate_verdict(0, 100, limit=0.01, confidence=95),
        "confidence must lie between 0.5 and 1, not 95: write 0.95 for 95%",
    ),
    "limit": (
        lambda: gates_api.rate_verdict(0, 100, limit=5, confidence=0.95),
        "limit must be above 0 and at most 1, not 5: write 0.05 for 5%",
    ),
}


@pytest.mark.parametrize("mistaken", FRACTIONS)
def test_a_fraction_or_percentage_in_the_others_place_is_refused(mistaken: str) -> None:
    asked, hint = FRACTIONS[mistaken]
    with pytest.raises(ValueError, match=re.escape(hint)):
        asked()


@pytest.mark.parametrize(
    "command",
    ["status", "history", "diagnose", "watch", "soak", "preflight", "sign-off", "gate-and-promote"],
)
def test_a_command_about_releases_names_the_one_of_a_served_name(
    command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    served = "meta-llama/Llama-2-7b"
    named = ["--platform", "local", "--set", f"models.{MODEL}.served_as={served}"]
    more = ["--evidence", "3f9a1c0b"] if command == "sign-off" else []
    found = CliRunner().invoke(app, [command, served, *named, *more])
    assert found.exit_code == 2, found.output
    assert f"Type {MODEL} in place of it." in " ".join(found.output.split())


@pytest.mark.parametrize(
    ("server", "reason", "remedy"),
    [
        (keyless, "asks for a bearer key", f"key into the environment variable {KEY}."),
        (None, "its certificate is not trusted", "Name the file with your authority's"),
    ],
)
def test_a_mistake_is_said_once_in_terminal_junit_report_and_ci_summary(
    tmp_path: Path,
    server: Server | None,
    reason: str,
    remedy: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    github_job(monkeypatch, tmp_path)
    context = None
    if server is None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    with hostile(scripted(server or vllm), context=context) as url:
        run = run_gates(tmp_path, *staging(url))
    said_once(tmp_path, run.stdout, reason, remedy)


def test_without_a_cluster_other_ways_are_named_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    github_job(monkeypatch, tmp_path)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    run = run_gates(tmp_path, "-m", "staging", "--model", MODEL)
    reason = "no cluster: the kubeconfig has no current context"
    remedy = "--base-url URL; or keep releases on this machine with --platform local."
    said_once(tmp_path, run.stdout, reason, remedy)
    assert "not asked: “Pods Running and Ready” got no answer" in run.stdout


def said_once(folder: Path, stdout: str, reason: str, remedy: str) -> None:
    """Reason and remedy stand once in terminal, JUnit, the report's and the CI's summary."""
    (report,) = folder.glob("reports/*/*/report.html")
    suite = ET.parse(report.with_name("junit.xml"))
    messages = [each.get("message", "") for each in suite.iter("error")]
    texts = "\n".join(each.text or "" for each in suite.iter("error"))
    assert sum(reason in each for each in messages) == 1
    page = unescape(report.read_text().partition('id="gates"')[0])
    terminal, _, annotations = stdout.partition("= gates =")[2].partition("\n::")
    summary = re.sub("[\\\\\u2060]", "", (folder / "summary").read_text(encoding="utf-8"))
    assert summary.count("not asked: ") == annotations.count("not asked: ") == 1
    for told in (terminal, annotations, texts, page, summary):
        assert told.count(reason) == 1, told
        assert told.count(remedy) == 1, told
    assert all(gate.outcome is UNKNOWN for gate in evidence_in(folder).runs[0].gates)


def test_a_gate_that_waits_for_answers_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_progress_line, "_SECONDS_BETWEEN_LINES", 0.01)
    monkeypatch.delenv(load_progress_line.EVENTS_VARIABLE, raising=False)
    reader, writer = os.pipe()
    config: Any = SimpleNamespace(stash=pytest.Stash())
    config.stash[load_progress_line.TERMINAL] = writer
    with load_progress_line.WaitingLine(config, "Health endpoint returns 200"):
        said = os.read(reader, 1 << 12).decode()
    assert said.startswith("\nHealth endpoint returns 200: waiting for answers, 0.01 s\n")


@pytest.mark.parametrize(
    ("server", "code", "said"),
    [
        (vllm, 0, "--base-url"),
        (keyless, 3, "Put the server's key into the environment variable"),
        (chat_only, 1, "Set `api: chat` in the policy."),
        (lambda _path, _body: PAGE, 3, "is this vLLM's address?"),
        (None, 4, "nothing answers at http://127.0.0.1:9"),
    ],
)
def test_check_says_what_answers_and_ends_by_it(
    server: Server | None, code: int, said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    with hostile(scripted(server or vllm)) as url:
        asked = f"{url}/v1" if server else "http://127.0.0.1:9"
        found = CliRunner().invoke(app, ["check", asked])
    assert found.exit_code == code, found.output
    assert said in " ".join(found.output.split())
    assert server is None or "/v1 was taken off" in found.output
    remedies = [line for line in found.output.splitlines() if line.lstrip().startswith("→")]
    assert len(remedies) == len(set(remedies))
    assert ("PASS          APIs" in found.output) is (server in (vllm, chat_only))
    assert not list(tmp_path.iterdir())
