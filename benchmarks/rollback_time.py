"""How long it takes from a fault in production to the old revision serving, and where it goes.

    python benchmarks/rollback_time.py [--runs 5]

On the local platform, with the simulator as the model server: a build is promoted; while it is
watched, its error rate is turned to 50%. Measured is, in seconds of this machine,

- detect: from the fault to the trigger (of which `triggers.error_rate.for` and the window are the
  policy's own: here 1 s each; the defaults are 5 minutes and 1 minute),
- decide: from the trigger to the platform's rollback beginning (lease, journal, decision),
- act: until the old revision is the one that serves,
- verify: until pods, health and inference have shown that it serves.

Medians of the runs are printed. It takes about two minutes a run, most of it gates before.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

import httpx
import yaml

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support.short_policy import short_policy

from vllm_rollout.deployment import Deployment
from vllm_rollout.platform.local import LocalPlatform
from vllm_rollout.settings import load_settings

MODEL = "llama-2-7b"
PARTS = ("detect", "decide", "act", "verify")
BIN = Path(sys.executable).parent


def values(folder: Path, revision: str) -> str:
    command = ["{python}", "-m", "vllm_rollout.simulator", "--port", "{port}", "--model", "{model}"]
    command += ["--ttft-seconds", "0.01", "--inter-token-seconds", "0.001"]
    file = folder / f"{revision}.yaml"
    file.write_text(yaml.safe_dump({"command": command, "model_revision": revision}))
    return str(file)


def run(folder: Path, *words: str) -> None:
    done = subprocess.run(
        [str(BIN / words[0]), *words[1:]], cwd=folder, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"{' '.join(words)}: exit {done.returncode}\n{done.stdout}{done.stderr}")


def to_staging(folder: Path, revision: str) -> None:
    run(folder, "vllm-rollout", "deploy", MODEL, "--values", values(folder, revision))
    run(folder, "gate-and-promote", MODEL, "--to", "staging")


def measured(folder: Path, platform: LocalPlatform, revision: str) -> dict[str, float]:
    """One rollback's parts, from what the rollout's evidence says of itself."""
    to_staging(folder, revision)
    broken = 0.0
    with subprocess.Popen(
        [str(BIN / "gate-and-promote"), MODEL], cwd=folder, stdout=subprocess.PIPE, text=True
    ) as rollout:
        for line in rollout.stdout or ():
            if f"watching production/{MODEL} for" in line:
                for replica in platform.replicas(Deployment(MODEL, "production")):
                    dials = {"error_rate": 0.5}
                    httpx.patch(f"{replica.address}/simulator/dials", json=dials)
                broken = time.time()
    newest = max(folder.glob(f"reports/{MODEL}/*/evidence.json"), key=lambda f: f.stat().st_mtime)
    steps = json.loads(newest.read_text())["evidence"]["steps"]
    began = next(s for s in steps if s["title"].startswith("rolling "))
    times = next(s["detail"] for s in steps if "again, verified" in s["title"])
    fired = datetime.fromisoformat(began["at"]).timestamp()
    parts = {
        part: float(found[1])
        for part in PARTS[1:]
        if (found := re.search(rf"{part} ([0-9.]+) s", times))
    }
    return {"detect": fired - broken, **parts}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=3)
    runs: int = parser.parse_args().runs
    os.environ.setdefault("VLLM_ROLLOUT_API_KEY", "unused-by-this-server")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        policy = {**short_policy(rate=100, seconds=2, expected=80), "platform": "local"}
        # Long enough for a trigger on a machine that does other things too.
        policy["watch"] = {**policy["watch"], "duration": "60s"}
        (folder / "rollout.yaml").write_text(yaml.safe_dump(policy))
        platform = load_settings(
            policy_file=str(folder / "rollout.yaml"),
            overrides={"local.state": str(folder / ".vllm-rollout")},
        ).require_platform()
        assert isinstance(platform, LocalPlatform)
        try:
            to_staging(folder, "r0")
            run(folder, "gate-and-promote", MODEL, "--set", "watch.duration=5s")
            found = [measured(folder, platform, f"r{n}") for n in range(1, runs + 1)]
        finally:
            platform.stop_all()
    for part in PARTS:
        figures = sorted(each[part] for each in found)
        sys.stdout.write(
            f"{part:8} median {statistics.median(figures):6.2f} s   "
            f"from {figures[0]:.2f} to {figures[-1]:.2f} s\n"
        )
    total = statistics.median(sum(each.values()) for each in found)
    sys.stdout.write(f"{'in all':8} median {total:6.2f} s   ({runs} runs)\n")


if __name__ == "__main__":
    main()
