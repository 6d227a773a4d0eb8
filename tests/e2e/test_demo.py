"""`make demo-clean` stops everything that the demo left serving, and asks nobody."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "examples" / "demo.yaml"
VALUES = ROOT / "examples" / "llama-2-7b.yaml"


def test_the_demo_is_cleaned_by_whoever_cannot_be_asked(tmp_path: Path) -> None:
    variables = {**os.environ, "VLLM_API_KEY": "demo-key", "VLLM_ROLLOUT_API_KEY": "demo-key"}

    def run(*words: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, *words],
            cwd=tmp_path,
            env=variables,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def rollout(*words: str) -> "subprocess.CompletedProcess[str]":
        return run("-m", "vllm_rollout", *words, "llama-2-7b", "--policy", str(DEMO))

    try:
        deployed = rollout("deploy", "--values", str(VALUES))
        assert deployed.returncode == 0, deployed.stdout + deployed.stderr
        cleaned = run(str(ROOT / "examples" / "demo.py"), "--clean")
        assert cleaned.returncode == 0, cleaned.stdout + cleaned.stderr
        assert rollout("status").stdout.count("not deployed") == 3
        assert "production/llama-2-7b: nothing was deployed" in cleaned.stdout
    finally:
        rollout("uninstall", "--yes")
