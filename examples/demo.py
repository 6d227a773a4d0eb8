"""The main job on one machine: development, staging, production, and (--rollback) back again.

Every step is one of the suite's own commands, printed before it runs, so that you can type it
yourself. The policy is demo.yaml beside this file; what is served is llama-2-7b.yaml.
"""

import argparse
import getpass
import os
import secrets
import shlex
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx

from vllm_rollout.model.deployment import Deployment
from vllm_rollout.model.errors import ExitCode
from vllm_rollout.model.evidence import read_evidence
from vllm_rollout.next_command import evidence_in_commands
from vllm_rollout.rollout.journal import Journal, Phase
from vllm_rollout.settings import load_settings

MODEL = "llama-2-7b"
HERE = Path(os.path.relpath(Path(__file__).parent))
POLICY = str(HERE / "demo.yaml")


def command(name: str, *arguments: str) -> int:
    """Print and run one of the suite's commands; its exit code."""
    words = [*name.split(), MODEL, "--policy", POLICY, *arguments]
    print(f"\n$ {shlex.join(words)}", flush=True)
    return subprocess.run(
        [str(Path(sys.executable).parent / words[0]), *words[1:]], check=False
    ).returncode


def must(code: int, *be: int) -> None:
    """End the demo unless the command ended as it should: with 0, or with one of `be`."""
    if code not in (be or (0,)):
        sys.exit(
            f"\nthe demo expected exit code {' or '.join(map(str, be or (0,)))} and got {code}; "
            "what went wrong is above. make demo-clean stops what it left serving."
        )


def roll_out(values: str, *again: str) -> int:
    """Deploy a build to development and promote it through staging to production.

    `again` is for a build that an earlier demo has rolled back.
    """
    must(command("vllm-rollout deploy", "--values", str(HERE / values)))
    must(command("gate-and-promote", "--to", "staging"))
    to_production = ("--to", "production", "--reason", f"demo of {values}", *again)
    pending = command("gate-and-promote", *to_production)
    must(pending, ExitCode.OK, ExitCode.INCONCLUSIVE)
    if pending == ExitCode.OK:  # signed off in an earlier demo
        return pending
    print("\nIt waits for a person. Whoever runs the demo stands in for QA and signs it off:")
    user = getpass.getuser()
    must(command("vllm-rollout sign-off", "--evidence", newest_evidence(), "--as", user))
    return command("gate-and-promote", *to_production)


def newest_evidence() -> str:
    """The digest of the evidence that was written last, shortened as the command prints it."""
    files = Path("reports", MODEL).glob("*/evidence.json")
    newest = read_evidence(max(files, key=lambda file: file.stat().st_mtime_ns))
    return evidence_in_commands(newest.digest)


def break_production_after_promotion() -> None:
    """Wait until the watch after promotion has begun, then let 20% of requests fail."""
    settings = load_settings(policy_file=POLICY)
    platform = settings.reader()
    journal = Journal(platform.store, MODEL)
    while (entry := journal.read()) is None or (entry.target, entry.phase) != (
        "production",
        Phase.WATCH,
    ):
        time.sleep(0.5)
    time.sleep(2)
    print("\n*** production breaks: the error rate goes to 20% ***\n", flush=True)
    for replica in platform.replicas(Deployment(MODEL, "production", settings.policy.namespace)):
        httpx.patch(f"{replica.address}/simulator/dials", json={"error_rate": 0.2})


def set_key() -> None:
    """Give the demo a bearer key of its own, kept in a file that only its owner can read."""
    file = Path(load_settings(policy_file=POLICY).policy.local.state) / "demo.key"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch(mode=0o600)
        file.write_text(secrets.token_urlsafe(24), encoding="utf-8")
    os.environ["VLLM_API_KEY"] = os.environ["VLLM_ROLLOUT_API_KEY"] = file.read_text(
        encoding="utf-8"
    )


def in_production() -> bool:
    """Whether production serves anything to return to."""
    settings = load_settings(policy_file=POLICY)
    deployment = Deployment(MODEL, "production", settings.policy.namespace)
    return any(r.complete for r in settings.reader().history(deployment))


def main() -> None:
    """Run the demo that the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--rollback", action="store_true", help="promote a second build and break production"
    )
    parser.add_argument("--clean", action="store_true", help="remove what the demo left serving")
    choice = parser.parse_args()
    if choice.clean:
        must(command("vllm-rollout uninstall", "--yes"))
        must(command("vllm-rollout uninstall", "-e", "production"))
        return
    set_key()
    if not choice.rollback or not in_production():
        must(roll_out("llama-2-7b.yaml"))
    if choice.rollback:
        threading.Thread(target=break_production_after_promotion, daemon=True).start()
        must(roll_out("llama-2-7b-v2.yaml", "--again"), ExitCode.ROLLED_BACK)
        print("\ngate-and-promote exited with 5: promoted, then rolled back by a trigger")
    must(command("vllm-rollout status"))
    print("\nThe model keeps serving; `make demo-clean` stops it.")


if __name__ == "__main__":
    main()
