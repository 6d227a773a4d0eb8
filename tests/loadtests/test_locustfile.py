"""`locust -f loadtests/locustfile.py` works alone, without the suite around it."""

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import httpx
import pytest
from cluster.fixtures import eventually
from support.browser import dom
from support.interruptible import interruptible

from vllm_rollout.ports import free_port
from vllm_rollout.resources import LOADTESTS

NOAUTH = Path(__file__).parents[1] / "data" / "vllm-0.32.0" / "noauth"


class ModelServer(BaseHTTPRequestHandler):
    """Answers every completion with a recorded one, streamed or whole as asked; HTTP/1.0."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        name, kind = ("completion", "application/json")
        if body["stream"]:
            name, kind = ("completion_stream_usage", "text/event-stream")
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.end_headers()
        self.wfile.write((NOAUTH / f"{name}.body").read_bytes())

    def log_message(self, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def base_url() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), ModelServer) as server:
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def locust(*options: str) -> list[str]:
    return [sys.executable, "-m", "locust", "-f", str(LOADTESTS / "locustfile.py"), *options]


@pytest.mark.parametrize("options", [[], ["--no-stream"]], ids=["streamed", "whole"])
def test_the_run_time_is_the_schedule_and_the_table_shows_ttft_apart(
    tmp_path: Path, base_url: str, options: list[str]
) -> None:
    command = locust("--headless", "--host", base_url, "--model", "llama-2-7b", "--rate", "20")
    command += ["--arrivals", "constant", "--run-time", "1s", "--results", "log", *options]
    done = subprocess.run(
        [*command, "--json"], cwd=tmp_path, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    rows = {row["method"]: row for row in json.loads(done.stdout)}
    assert set(rows) == ({"POST"} if options else {"POST", "TTFT", "ITL", "tokens/s"})
    assert rows["POST"]["num_requests"] == 20
    # A stall of this machine hides the times of some tokens.
    assert all(0 < row["num_requests"] <= 20 for row in rows.values())
    assert not any(row["num_failures"] for row in rows.values())
    log = (tmp_path / "log" / "worker-0.jsonl").read_text().splitlines()
    assert log[-1].startswith('{"line":"end","stopped_at":null,')
    assert sum(line.startswith("[") for line in log) == 20


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--host", "http://127.0.0.1:9"], "model is not empty"),
        (["--model", "llama-2-7b"], "base_url is http:// or https://"),
        (["--plan", "absent.json"], "cannot read the load plan"),
        (["--model", "m", "--arrivals", "uniform"], "invalid choice: 'uniform'"),
        (["--model", "m", "--shape", "60:10,5"], "'5' is no SECONDS:RATE"),
    ],
)
def test_options_that_make_no_plan_end_it_at_once_with_one_clear_message(
    tmp_path: Path, options: list[str], complaint: str
) -> None:
    done = subprocess.run(
        locust("--headless", *options), cwd=tmp_path, capture_output=True, text=True, timeout=240
    )
    assert done.returncode in (1, 2)
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr


def test_the_web_page_starts_and_stops_an_endless_load_whatever_the_number_of_users(
    tmp_path: Path, base_url: str
) -> None:
    port = free_port()
    command = locust("--web-host", "127.0.0.1", "--web-port", str(port), "--model", "llama-2-7b")
    command += ["--rate", "50", "--arrivals", "constant", "--results", "log"]
    form = {"user_count": 7, "spawn_rate": 7, "host": base_url}
    transport = httpx.HTTPTransport(retries=10)  # connects again while the page is not up yet
    with (
        (tmp_path / "output").open("wb") as output,
        subprocess.Popen(command, cwd=tmp_path, stderr=output) as locust_process,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", transport=transport) as page,
    ):
        try:
            assert page.post("/swarm", data=form, timeout=30).json()["success"]
            while len(rows := (stats := page.get("/stats/requests").json())["stats"]) < 5:
                time.sleep(0.1)
            html = page.get("/").text
            assert page.post("/stop", timeout=30).json()["success"]
        finally:
            locust_process.terminate()
    assert '"title": "Tokens"' in html
    [tokens] = stats["extended_stats"][0]["data"]
    assert (tokens["name"], tokens["answers"] > 0, tokens["speed"] > 0) == (
        "completion",
        True,
        True,
    )
    assert 0 < tokens["ttft_50"] <= tokens["latency_50"] <= tokens["latency_99"]
    assert [row["method"] for row in rows] == ["ITL", "POST", "TTFT", "tokens/s", ""]
    assert not re.search("Traceback|ERROR", (tmp_path / "output").read_text())
    log = (tmp_path / "log" / "worker-0.jsonl").read_text().splitlines()
    numbers = [json.loads(line)[0] for line in log if line.startswith("[")]
    assert sorted(numbers) == list(range(len(numbers))), "each arrival once, though 7 users ran"
    assert log[-1].startswith('{"line":"end","stopped_at":null,')


@pytest.mark.browser
def test_the_tokens_tab_shows_the_answers_of_all_workers(tmp_path: Path, base_url: str) -> None:
    """Of two processes, in a real browser, when the load has been stopped on the page."""
    port, bind = free_port(), free_port()
    command = locust("--web-host", "127.0.0.1", "--web-port", str(port), "--model", "llama-2-7b")
    command += ["--rate", "20", "--arrivals", "constant", "--processes", "2", "--results", "log"]
    command += ["--master-bind-host", "127.0.0.1", "--master-bind-port", str(bind)]
    command += ["--master-port", str(bind), "--autostart", "--host", base_url, "-u", "2", "-r", "2"]
    url = f"http://127.0.0.1:{port}"
    with (
        (tmp_path / "output").open("wb") as output,
        subprocess.Popen(command, cwd=tmp_path, stdout=output, stderr=output) as locust_process,
        httpx.Client(base_url=url, transport=httpx.HTTPTransport(retries=10)) as page,
    ):
        try:
            eventually(lambda: _answers(page) >= 40)
            assert page.post("/stop", timeout=30).json()["success"]
            # What workers counted last comes with their next report.
            eventually(lambda: _stopped(page) and _answers(page) == sum(_logged(tmp_path)))
            shown = dom(f"{url}/?tab=tokens", tmp_path / "profile", script_seconds=10)
        finally:
            locust_process.terminate()
    table = shown[shown.index("Inter-token P50 ms") :]
    cells = re.findall(r"<td[^>]*>(?:<[^>]*>)*([^<]*)", table)
    assert cells[:2] == ["completion", str(sum(_logged(tmp_path)))]
    assert [answers > 10 for answers in _logged(tmp_path)] == [True, True]
    assert len(cells) == 12
    assert all(float(cell) > 0 for cell in cells[2:])


def _answers(page: httpx.Client) -> int:
    pages = page.get("/stats/requests").json().get("extended_stats") or [{"data": []}]
    return sum(row["answers"] for row in pages[0]["data"])


def _stopped(page: httpx.Client) -> bool:
    return bool(page.get("/stats/requests").json()["state"] == "stopped")


def _logged(folder: Path) -> list[int]:
    """Answers in each worker's log."""
    return [log.read_text().count('"ok"') for log in sorted((folder / "log").iterdir())]


def test_ctrl_c_ends_an_endless_load_with_its_table_and_a_whole_log(
    tmp_path: Path, base_url: str
) -> None:
    command = locust("--headless", "--host", base_url, "--model", "llama-2-7b", "--rate", "50")
    log = tmp_path / "log" / "worker-0.jsonl"
    with interruptible(
        [*command, "--results", "log", "--json"], cwd=tmp_path, stderr=subprocess.PIPE
    ) as process:
        while not log.exists() or log.read_text().count('"ok"') < 20:
            assert process.poll() is None
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        table, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    lines = log.read_text().splitlines()
    assert lines[-1].startswith('{"line":"end","stopped_at":')
    sent = [line for line in lines if line.startswith("[")]
    [row] = [row for row in json.loads(table) if row["method"] == "POST"]
    assert len(sent) >= 20
    # Ctrl-C may come when an answer is in the log, and not yet in Locust's own table.
    assert 0 <= len(sent) - row["num_requests"] <= 1


def test_closed_users_wait_for_answers_and_shapes_and_traces_keep_to_their_times(
    tmp_path: Path, base_url: str
) -> None:
    (tmp_path / "trace.csv").write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:47.0805900,12,8\n"
    )
    common = ("--headless", "--host", base_url, "--model", "m", "--results", "log")
    closed = ("--arrivals", "closed", "--users", "3", "--run-time", "2s")
    shape = ("--shape", "0.5:20,0.5:20-60", "--arrivals", "constant")
    for options in (closed, shape, ("--trace", "trace.csv", "--speed", "2")):
        done = subprocess.run(
            locust(*common, *options), cwd=tmp_path, capture_output=True, text=True, timeout=240
        )
        assert done.returncode == 0, done.stderr
        log = (tmp_path / "log" / "worker-0.jsonl").read_text().splitlines()
        sent = [json.loads(line) for line in log if line.startswith("[")]
        assert {line[5] for line in sent} == {"ok"}
        if options == closed:
            assert len(sent) > 3
            assert max(_under_way(sent)) <= 3
        elif options == shape:
            assert sum(line[1] < 0.5 for line in sent) == 10
            assert sum(line[1] >= 0.5 for line in sent) == 20
        else:
            assert sorted(line[1] for line in sent) == pytest.approx([0.0, 0.2])
            assert {line[10] for line in sent} == {"trace"}


def _under_way(sent: list[list[float]]) -> list[int]:
    """How many requests were open when each was sent."""
    return [sum(other[2] <= one[2] < other[4] for other in sent) for one in sent]
