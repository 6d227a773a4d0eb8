"""Breaks the product on purpose, one promise at a time, and looks whether the tests notice.

    python tests/mutations/run.py [--only WORD] [--jobs 2]

Each mutation is one line that says the wrong thing; `make test-all` must turn red on it. It is made
in a copy of the checkout, and the tests named beside it are run there: at least one has to fail.
Ends with 1 if a mutation survives. `test_mutations.py` holds that every mutation still applies.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_COPIED = ("vllm_rollout", "gates", "loadtests", "charts", "tests", "docs", "reports", "examples")


@dataclass(frozen=True, slots=True)
class Mutation:
    """One broken promise: `old` becomes `new` in `file`, and one of `tests` fails."""

    breaks: str
    file: str
    old: str
    new: str
    tests: str


MUTATIONS = (
    Mutation(
        "the journal is written before a change",
        "vllm_rollout/rollout/journal.py",
        "            self._version = self._store.write(self._key, value, expect=self._version)",
        "            self._version = self._version or '1'",
        "tests/rollout/test_crashes.py",
    ),
    Mutation(
        "two writers of a journal never mix",
        "vllm_rollout/rollout/journal.py",
        "            if found is None or found.value != value:\n                raise",
        "            if found is None:\n                raise",
        "tests/rollout/test_journal.py",
    ),
    Mutation(
        "the lease is asked for right before a change",
        "vllm_rollout/rollout/lease.py",
        "        self.renew()\n        if self.seconds_left() <= 0:",
        "        if self.seconds_left() <= 0:",
        "tests/rollout/test_lease.py tests/rollout/test_crashes.py",
    ),
    Mutation(
        "a lease is taken over only when it stood still for its whole time",
        "vllm_rollout/rollout/lease.py",
        "clock.monotonic() - since >= ttl.total_seconds()",
        "clock.monotonic() - since >= ttl.total_seconds() / 2",
        "tests/rollout/test_lease.py",
    ),
    Mutation(
        "a renewal that came too late is a loss",
        "vllm_rollout/rollout/lease.py",
        "        if self.seconds_left() <= 0:\n",
        "        if self.seconds_left() < 0:\n",
        "tests/rollout/test_lease.py",
    ),
    Mutation(
        "no fewer pods are ready than capacity asks for",
        "vllm_rollout/platform/kubernetes/surge_plan.py",
        "max(leaving_goal, least - coming)",
        "max(leaving_goal, least - coming - 1)",
        "tests/platform/kubernetes/test_surge_plan.py",
    ),
    Mutation(
        "what is promoted is the build that was gated",
        "vllm_rollout/rollout/preconditions.py",
        "    differences = run.build.differences(build)",
        "    differences: list[str] = []",
        "tests/rollout/test_engine.py tests/rollout/test_build_drift.py",
    ),
    Mutation(
        "the gated revision is the one that is still there",
        "vllm_rollout/rollout/preconditions.py",
        "    elif now.number != revision.number or not run.is_about(now):",
        "    elif now.build != run.build:",
        "tests/rollout/test_engine.py tests/rollout/test_build_drift.py",
    ),
    Mutation(
        "an image of a moved tag is not what was gated",
        "vllm_rollout/rollout/preconditions.py",
        "        if not r.image or r.image not in gated",
        "        if not r.image",
        "tests/rollout/test_build_drift.py",
    ),
    Mutation(
        "an answer has a total deadline",
        "vllm_rollout/http_client/exchange.py",
        "            async with asyncio.timeout(self._timeout_seconds) as deadline:",
        "            async with asyncio.timeout(3600) as deadline:",
        "tests/test_http_client.py",
    ),
    Mutation(
        "an answer has a size limit after decompression",
        "vllm_rollout/http_client/exchange.py",
        "            if max(raw, size) > self._max_bytes:",
        "            if raw > self._max_bytes:",
        "tests/test_http_client.py",
    ),
    Mutation(
        "a percentile passes on its upper bound",
        "vllm_rollout/judge/percentile.py",
        "        if upper is not None and upper < self.limit:",
        "        if measured is not None and measured < self.limit:",
        "tests/judge/test_percentile.py",
    ),
    Mutation(
        "an error rate passes on its upper bound",
        "vllm_rollout/judge/rate.py",
        "    if upper < limit:\n",
        "    if failures / total < limit:\n",
        "tests/judge/test_rate.py",
    ),
    Mutation(
        "nothing judged is never a pass",
        "vllm_rollout/model/verdict.py",
        "    return min(outcomes, key=_ORDER.index, default=Outcome.INCONCLUSIVE)",
        "    return min(outcomes, key=_ORDER.index, default=Outcome.PASS)",
        "tests/judge tests/report",
    ),
    Mutation(
        "a gate passes by its recorded verdict and by nothing else",
        "vllm_rollout/pytest_plugin/gate_results.py",
        "    if record.result.outcome is Outcome.PASS:\n        report.outcome",
        "    if record.result.outcome is not Outcome.FAIL:\n        report.outcome",
        "tests/pytest_plugin/test_recorded_verdicts.py",
    ),
    Mutation(
        "a session that is not a pass does not exit with 0",
        "vllm_rollout/pytest_plugin/session_results.py",
        "pytest.ExitCode.OK if part is Outcome.PASS else",
        "pytest.ExitCode.OK if part is not Outcome.FAIL else",
        "tests/pytest_plugin/test_recorded_verdicts.py",
    ),
    Mutation(
        "no fixture of a conftest stands in for the suite's",
        "vllm_rollout/pytest_plugin/gate_collection.py",
        "            vars(module).update({each.__name__: each for each in fixtures.FIXTURES})\n",
        "",
        "tests/pytest_plugin/test_collection.py",
    ),
    Mutation(
        "no fixture of a conftest reaches a gate of the suite",
        "vllm_rollout/pytest_plugin/gate_collection.py",
        "    item.fixturenames[:] = filter(is_ours, item.fixturenames)\n",
        "",
        "tests/pytest_plugin/test_collection.py",
    ),
    Mutation(
        "a bucket never interpolates its way to a pass",
        "vllm_rollout/judge/buckets.py",
        "        if upper is not None and upper <= self.limit:",
        "        if lower is not None and lower <= self.limit:",
        "tests/judge/test_buckets.py",
    ),
    Mutation(
        "a late generator's load is not judged",
        "vllm_rollout/judge/generator.py",
        "            lag_seconds is not None and lag_seconds <= max_lag_seconds\n",
        "            lag_seconds is not None and lag_seconds <= 10 * max_lag_seconds\n",
        "tests/judge/test_generator.py",
    ),
    Mutation(
        "no data fires no trigger and clears none",
        "vllm_rollout/judge/trigger.py",
        "        if observation is None or not observation >= 0:\n",
        "        observation = observation or 0.0\n        if not observation >= 0:\n",
        "tests/judge/test_trigger.py",
    ),
    Mutation(
        "a trigger fires only when its condition lasted",
        "vllm_rollout/judge/trigger.py",
        "            return in_a_row > self.consecutive",
        "            return in_a_row >= self.consecutive",
        "tests/judge/test_trigger.py",
    ),
    Mutation(
        "a restart begins a soak anew",
        "vllm_rollout/judge/soak.py",
        "        if stretch.restarted:\n",
        "        if stretch.restarted and not stretch.healthy:\n",
        "tests/judge/test_soak.py",
    ),
    Mutation(
        "time in which nobody looked is no soak",
        "vllm_rollout/judge/soak.py",
        "        elif apart > self._rules.max_gap:\n",
        "        elif apart > 100 * self._rules.max_gap:\n",
        "tests/judge/test_soak.py",
    ),
    Mutation(
        "status shows a rejection",
        "vllm_rollout/rollout/sign_offs.py",
        "        if not each.approved:\n",
        "        if not each.approved and not known:\n",
        "tests/rollout/test_sign_offs.py",
    ),
    Mutation(
        "a rejection stops the promotion",
        "vllm_rollout/rollout/preconditions.py",
        "        if not sign_off.approved:\n            return RolloutResult(",
        "        if not sign_off:\n            return RolloutResult(",
        "tests/rollout/test_sign_offs.py",
    ),
    Mutation(
        "stale evidence is not promoted on",
        "vllm_rollout/rollout/sign_offs.py",
        "    if not timedelta() <= now - run.finished <= valid:",
        "    if not timedelta() <= now - run.finished:",
        "tests/rollout/test_sign_offs.py",
    ),
    Mutation(
        "evidence of another policy is not promoted on",
        "vllm_rollout/rollout/sign_offs.py",
        "    if run.policy_digest != policy.digest:",
        "    if not run.policy_digest:",
        "tests/rollout/test_sign_offs.py",
    ),
    Mutation(
        "a changed decision is named",
        "vllm_rollout/rollout/audit_log.py",
        "        if digest == claimed:",
        "        if digest:",
        "tests/rollout/test_audit_log.py tests/cli/test_history.py",
    ),
    Mutation(
        "a sign-off that was put in again does not count",
        "vllm_rollout/rollout/identity.py",
        "        elif earlier is not None and at <= earlier[0]:",
        "        elif earlier is not None and not at:",
        "tests/rollout/test_identity.py",
    ),
    Mutation(
        "a sign-off that nothing proves takes no other's place",
        "vllm_rollout/rollout/sign_offs.py",
        "            if proved[each.number].problem and each.kind is DecisionKind.SIGN_OFF:",
        "            if proved[each.number].problem and each.kind is DecisionKind.OVERRIDE:",
        "tests/rollout/test_identity.py",
    ),
    Mutation(
        "evidence that no run has signed is none",
        "vllm_rollout/rollout/sign_offs.py",
        "                unsigned(self._store, policy.evidence, self._model, decision.evidence)\n"
        "                or evidence",
        "                evidence",
        "tests/rollout/test_identity.py",
    ),
    Mutation(
        "a build that was rolled back is not returned to",
        "vllm_rollout/rollout/evidence_store.py",
        "if not withdrawn or r.build.digest not in withdrawn.value]",
        "if r.build]",
        "tests/rollout/test_rollback.py tests/rollout/test_monitor.py",
    ),
    Mutation(
        "production is closed outside its hours",
        "vllm_rollout/judge/windows.py",
        "    if not windows.hours.contain(local.time()):",
        "    if local.time() < windows.hours.from_:",
        "tests/judge/test_windows.py",
    ),
    Mutation(
        "control characters of a model's answer reach no terminal",
        "vllm_rollout/model/text.py",
        '    text = _UNPRINTABLE.sub("\\ufffd", text.replace("\\r\\n", "\\n"))',
        '    text = text.replace("\\r\\n", "\\n")',
        "tests/report",
    ),
    Mutation(
        "secrets of the environment are hidden in output",
        "vllm_rollout/model/text.py",
        "        text = text.replace(secret, HIDDEN)",
        "        text = text.replace(secret, secret)",
        "tests/model/test_text.py",
    ),
    Mutation(
        "a key that the policy does not know is an error",
        "vllm_rollout/policy/fields.py",
        'ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)',
        'ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)',
        "tests/policy",
    ),
)


def survives(mutation: Mutation, folder: Path) -> str:
    """What the tests said if none of them failed; empty if the mutation was caught."""
    file = folder / mutation.file
    text = file.read_text(encoding="utf-8")
    assert text.count(mutation.old) == 1, f"{mutation.breaks}: {mutation.file} has changed"
    file.write_text(text.replace(mutation.old, mutation.new), encoding="utf-8")
    try:
        done = subprocess.run(
            [
                sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider",
                *mutation.tests.split(),
            ],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            check=False,
        )  # fmt: skip
    finally:
        file.write_text(text, encoding="utf-8")
    lines = done.stdout.strip().splitlines()
    if done.returncode == 1:
        failed = next((line for line in lines if line.startswith("FAILED")), lines[-1])
        print(f"caught    {mutation.breaks}: {failed.removeprefix('FAILED ').partition(' - ')[0]}")
        return ""
    print(f"SURVIVES  {mutation.breaks} (exit {done.returncode}: {lines[-1] if lines else ''})")
    return mutation.breaks


def copy_of_checkout(folder: Path) -> Path:
    """The files that tests need, in `folder`."""
    for name in _COPIED:
        leave = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / name, ignore=leave)
    for name in ("pyproject.toml", "conftest.py", "README.md"):
        shutil.copy(ROOT / name, folder / name)
    return folder


def main() -> int:
    """Make each mutation and print what caught it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="mutations whose text or file has this word")
    parser.add_argument("--jobs", type=int, default=2, help="how many at once")
    arguments = parser.parse_args()
    chosen = [m for m in MUTATIONS if arguments.only in m.breaks + m.file]
    with tempfile.TemporaryDirectory() as folder:
        copies = [copy_of_checkout(Path(folder) / str(n)) for n in range(arguments.jobs)]

        def run(number: int) -> list[str]:
            mine = chosen[number :: arguments.jobs]
            return [text for m in mine if (text := survives(m, copies[number]))]

        with ThreadPoolExecutor(arguments.jobs) as pool:
            left = [text for found in pool.map(run, range(arguments.jobs)) for text in found]
    print(f"{len(chosen) - len(left)} of {len(chosen)} mutations were caught")
    return bool(left)


if __name__ == "__main__":
    sys.exit(main())
