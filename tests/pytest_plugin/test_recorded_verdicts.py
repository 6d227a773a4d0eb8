"""Exit code, words, JUnit and evidence of a session all follow from the recorded verdicts."""

import os
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.forked import forked
from support.gate_runs import (
    FAST,
    MODEL,
    evidence_in,
    run_gates,
    staging,
    started_gates,
    unreported,
)

from vllm_rollout import pytest_plugin as plugin
from vllm_rollout.judge import Outcome
from vllm_rollout.pytest_plugin.load_progress_line import check_variables, end_with_parent
from vllm_rollout.simulator.running import RunningSimulator

PLUGIN = Path(plugin.__file__).parent
DEAD = unreported("http://127.0.0.1:9")
COUNTED = '''
"""A gate of a team's own that fails at its first run and would pass at any later one."""
from pathlib import Path
from vllm_rollout.judge import check

def test_ours(deployment, verdict):
    runs = Path("runs")
    runs.write_text((runs.read_text() if runs.exists() else "") + "x")
    verdict(check(len(runs.read_text()) > 1, "the gate was run"))
'''

BY_PROTOCOL = """
import pytest
from _pytest.runner import runtestprotocol
@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item, nextitem):
    for _ in range(3):
        reports = runtestprotocol(item, nextitem=nextitem, log=False)
        if not any(report.failed for report in reports):
            break
    for report in reports:
        item.ihook.pytest_runtest_logreport(report=report)
    return True
"""
BY_REPORT = """
import pytest
@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if call.when == "call" and call.excinfo:
        item.ihook.pytest_runtest_teardown(item=item, nextitem=item)
        item._initrequest()
        for hook in (item.ihook.pytest_runtest_setup, item.ihook.pytest_runtest_call):
            again = pytest.CallInfo.from_call(lambda: hook(item=item), when="call")
        report.outcome = "failed" if again.excinfo else "passed"
    return report
"""
BY_CALL = """
import pytest
@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem):
    try:
        return (yield)
    except BaseException:
        arguments = {n: pyfuncitem.funcargs[n] for n in ("deployment", "verdict")}
        return pyfuncitem.obj(**arguments) or True
"""
LATE = """
import pytest
class Again:
    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item, nextitem):
        from _pytest.runner import runtestprotocol
        runtestprotocol(item, nextitem=nextitem, log=False)
        runtestprotocol(item, nextitem=nextitem)
        return True
def pytest_sessionstart(session):
    session.config.pluginmanager.register(Again())
"""


@pytest.mark.parametrize("again", [BY_PROTOCOL, BY_REPORT, BY_CALL, LATE])
def test_a_plugin_that_runs_tests_again_turns_no_fail_into_a_pass(
    tmp_path: Path, again: str
) -> None:
    (tmp_path / "test_ours.py").write_text(COUNTED)
    (tmp_path / "conftest.py").write_text(again)
    run = run_gates(tmp_path, "test_ours.py", *DEAD, changes=())

    assert run.returncode == pytest.ExitCode.TESTS_FAILED, run.stdout
    assert evidence_in(tmp_path).runs[0].gates[0].outcome is Outcome.FAIL
    assert f"{MODEL}: FAIL" in run.stdout
    assert again is BY_CALL or (tmp_path / "runs").read_text() == "x"


FAILING = """
from vllm_rollout.judge import check
def test_ours(deployment, verdict):
    verdict(check(False, "it does not hold"))
"""
SWALLOWED = """
from vllm_rollout.judge import check
def test_ours(deployment, verdict):
    try:
        verdict(check(False, "it does not hold"))
    except BaseException:
        pass
"""
BAD, UNMET = "verdict(check(False, 'bad'))", "assert not 'met'"
IN_SUBTESTS = """
from vllm_rollout.judge import check
def test_ours(deployment, verdict, subtests):
    with subtests.test("a"):
        verdict(check(True, "fine"))
    with subtests.test("b"):
        {second}
"""
IN_TEARDOWN = """
import contextlib, pytest
from vllm_rollout.judge import check
@pytest.fixture
def later(verdict):
    yield
    with contextlib.suppress(BaseException):
        verdict(check(False, "bad afterwards"))
def test_ours(deployment, verdict, later): verdict(check(True, "fine"))
"""
BY_TWO_REPORTS = (
    IN_TEARDOWN,
    IN_SUBTESTS.format(second=BAD),
    IN_SUBTESTS.format(second=UNMET),
)
WRITTEN = """
from vllm_rollout.judge import Verdict
def test_ours(deployment, verdict): verdict(Verdict(outcome="{word}", reason="bad"))
"""
WARN_ONLY = """
import pytest
@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_cmdline_main(config):
    yield
    {end}
"""
LATE_END = """
import pytest
class Late:
    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_sessionfinish(self, session):
        result = yield
        session.exitstatus = 0
        return result
def pytest_runtest_setup(item): item.config.pluginmanager.register(Late())
"""
CUT_SHORT = LATE_END.replace("result = yield", "pytest.exit('', returncode=0); yield")
ASSERTS_ONLY = "def test_ours(deployment): assert deployment.environment == 'staging'\n"
NOT_RUN = """
from vllm_rollout.judge import check
def test_ours(cluster, verdict): verdict(check(True, "fine"))
"""


def marked(mark: str) -> str:
    return (
        "import pytest\ndef pytest_collection_modifyitems(items):\n"
        f"    for item in items: item.add_marker(pytest.mark.{mark})\n"
    )


@pytest.mark.parametrize(
    ("gate", "conftest", "outcome"),
    [
        (FAILING, marked("xfail"), Outcome.FAIL),
        (FAILING, marked("xfail(strict=True)"), Outcome.FAIL),
        (FAILING, marked("xfail(run=False)"), Outcome.INCONCLUSIVE),
        (FAILING, marked("skip"), Outcome.INCONCLUSIVE),
        (
            FAILING,
            "import pytest\n@pytest.fixture\ndef verdict(): return print\n",
            Outcome.INCONCLUSIVE,
        ),
        (FAILING, "def pytest_sessionfinish(session): session.exitstatus = 0\n", Outcome.FAIL),
        (FAILING, WARN_ONLY.format(end="return 0"), Outcome.FAIL),
        (FAILING, WARN_ONLY.format(end="raise SystemExit(0)"), Outcome.FAIL),
        (FAILING, LATE_END, Outcome.FAIL),
        (SWALLOWED, "", Outcome.FAIL),
        (IN_SUBTESTS.format(second=BAD), "", Outcome.FAIL),
        (IN_SUBTESTS.format(second=UNMET), "", Outcome.FAIL),
        (IN_SUBTESTS.format(second="1 / 0"), "", Outcome.INCONCLUSIVE),
        (IN_TEARDOWN, "", Outcome.FAIL),
        (WRITTEN.format(word="fail"), "", Outcome.FAIL),
        (WRITTEN.format(word="failed"), "", Outcome.INCONCLUSIVE),
        (ASSERTS_ONLY, "", Outcome.INCONCLUSIVE),
        (NOT_RUN, "", Outcome.INCONCLUSIVE),
    ],
)
def test_a_gate_passes_by_its_recorded_verdict_alone(
    tmp_path: Path, gate: str, conftest: str, outcome: Outcome
) -> None:
    (tmp_path / "test_ours.py").write_text(gate)
    (tmp_path / "conftest.py").write_text(conftest)
    run = run_gates(tmp_path, "test_ours.py", *DEAD, changes=())

    assert run.returncode == pytest.ExitCode.TESTS_FAILED, run.stdout
    found = [gate.outcome for gate in evidence_in(tmp_path).runs[0].gates]
    assert found == [Outcome.PASS] * (gate is IN_TEARDOWN) + [outcome]
    assert f"{MODEL}: {outcome.upper()}" in run.stdout
    counted = "failed" if outcome is Outcome.FAIL else "inconclusive"
    if gate not in BY_TWO_REPORTS:
        assert f"1 {counted}" in run.stdout.splitlines()[-1]


def test_a_session_end_that_is_cut_short_is_no_pass(tmp_path: Path) -> None:
    (tmp_path / "test_ours.py").write_text(FAILING)
    (tmp_path / "conftest.py").write_text(CUT_SHORT)
    assert run_gates(tmp_path, "test_ours.py", *DEAD, changes=()).returncode == 1


def test_a_gate_that_kills_its_worker_is_not_run_again(tmp_path: Path) -> None:
    (tmp_path / "test_ours.py").write_text(
        "import os\nfrom pathlib import Path\nfrom vllm_rollout.judge import check\n"
        "def test_a(deployment, verdict): verdict(check(True, 'fine'))\n"
        "def test_b(deployment, verdict):\n"
        "    Path('runs').open('a').write('x')\n    os._exit(7)\n"
        "def test_c(deployment, verdict): verdict(check(True, 'fine'))\n"
    )
    run = started_gates(tmp_path, "test_ours.py", *DEAD, "-n", "1", changes=())

    assert run.returncode == 1, run.stdout
    assert (tmp_path / "runs").read_text() == "x"
    gates = {gate.item[:6]: gate for gate in evidence_in(tmp_path).runs[0].gates}
    found = [gates[name].outcome for name in ("test_a", "test_b", "test_c")]
    assert found == [Outcome.PASS, Outcome.INCONCLUSIVE, Outcome.INCONCLUSIVE]
    assert "crashed while running" in gates["test_c"].error


@pytest.mark.parametrize("plugins", [[], [object()]])
def test_a_policy_among_the_added_options_moves_no_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plugins: list[object]
) -> None:
    file = tmp_path / "there" / "rollout.yaml"
    file.parent.mkdir()
    file.touch()
    monkeypatch.setenv("PYTEST_ADDOPTS", f"-q --policy '{file}'")
    asked: list[object] = []

    def main(arguments: list[str], plugins: object) -> int:
        asked.extend([arguments, os.environ["PYTEST_ADDOPTS"], plugins])
        return 1

    monkeypatch.setattr(pytest, "main", main)
    params = pytest.Config.InvocationParams(args=["x"], plugins=plugins, dir=tmp_path)
    config: Any = SimpleNamespace(invocation_params=params, stash=pytest.Stash())

    assert plugin.started_again(config) == 1
    assert asked == [["x"], f"-q --policy={file}", plugins]


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("EVENTS", "/nowhere/events"),
        ("LIFELINE", "0"),
        ("LIFELINE", "x"),
        ("LIFELINE", "77"),
        ("POLICY_SET", "confidence=99%"),
        ("EVIDENCE", "evidence.json"),
        ("VALUES", "values.yaml"),
    ],
)
def test_a_variable_that_cannot_be_meant_is_refused(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(f"VLLM_ROLLOUT_{variable}", value)
    with pytest.raises(pytest.UsageError, match=f"VLLM_ROLLOUT_{variable}"):
        check_variables()


def test_the_last_line_says_that_no_report_was_written(tmp_path: Path) -> None:
    (tmp_path / "test_ours.py").write_text(
        "from vllm_rollout.judge import check\n"
        "def test_ours(deployment, verdict): verdict(check(True, 'fine'))\n"
    )
    (tmp_path / "reports").touch()
    run = run_gates(tmp_path, "test_ours.py", *staging("http://127.0.0.1:9"), changes=())

    assert run.returncode == pytest.ExitCode.INTERNAL_ERROR
    (last,) = [line for line in run.stdout.splitlines() if line.startswith(f"{MODEL}: ")]
    assert last.startswith(f"{MODEL}: the report could not be written")


def test_a_gate_that_never_began_is_no_pass_of_the_part(tmp_path: Path) -> None:
    (tmp_path / "test_ours.py").write_text(
        "from vllm_rollout.judge import check\n"
        "def test_ours(deployment, verdict): verdict(check(True, 'fine'))\n"
    )
    (tmp_path / "conftest.py").write_text(
        "import pytest\n"
        "def pytest_sessionstart(session): session.config.pluginmanager.register(Nothing())\n"
        "class Nothing:\n"
        "    @pytest.hookimpl(tryfirst=True)\n"
        "    def pytest_runtest_protocol(self): return True\n"
    )
    run = run_gates(tmp_path, "test_ours.py", *DEAD, changes=())

    assert run.returncode == pytest.ExitCode.TESTS_FAILED, run.stdout
    assert "INCONCLUSIVE" in run.stdout.splitlines()[-2]
    assert "did not run" in evidence_in(tmp_path).runs[0].gates[0].error


def test_a_part_that_passes_says_that_it_is_a_part(tmp_path: Path) -> None:
    with RunningSimulator(model=MODEL, **FAST) as server:
        run = run_gates(tmp_path, *unreported(server.url), "-k", "health")

    assert run.returncode == 0, run.stdout
    words = "PASS of the part that was run (1 of 7 gates); nothing may be promoted on this"
    assert f"{MODEL}: {words}" in run.stdout, run.stdout
    assert evidence_in(tmp_path).outcome is Outcome.INCONCLUSIVE


def test_both_junit_files_agree_on_what_is_inconclusive(tmp_path: Path) -> None:
    (tmp_path / "test_ours.py").write_text(
        "import time\nimport pytest\nfrom vllm_rollout.judge import check\n"
        "@pytest.fixture\ndef slow(): time.sleep(0.3)\n"
        "@pytest.mark.parametrize('holds', [True, False, None])\n"
        "def test_ours(slow, deployment, verdict, holds): verdict(check(holds, 'because'))\n"
    )
    run = run_gates(
        tmp_path,
        "test_ours.py",
        *staging("http://127.0.0.1:9"),
        "--junitxml=theirs.xml",
        changes=(),
    )

    assert run.returncode == 1
    (ours,) = tmp_path.glob("reports/*/*/junit.xml")
    for file in (ours, tmp_path / "theirs.xml"):
        root = ET.parse(file).getroot()
        (suite,) = root.iter("testsuite")
        assert (suite.get("failures"), suite.get("errors")) == ("1", "1"), file
        assert [len(list(root.iter(kind))) for kind in ("failure", "error")] == [1, 1], file
        cases = [case for case in root.iter("testcase") if "[staging-" in case.get("name", "")]
        assert len(cases) == 3
        assert all(float(case.get("time", 0)) >= 0.3 for case in cases), "setup is part of it"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_run_that_is_ended_from_outside_leaves_its_report(
    tmp_path: Path, number: signal.Signals
) -> None:
    (tmp_path / "test_ours.py").write_text(
        "import time\nfrom pathlib import Path\nfrom vllm_rollout.judge import check\n"
        "def test_first(deployment, verdict): verdict(check(True, 'fine'))\n"
        "def test_long(deployment, verdict):\n"
        "    Path('began').touch()\n    time.sleep(60)\n"
    )
    command = [sys.executable, "-m", "pytest", "test_ours.py", *DEAD, "-p", "no:hypothesispytest"]
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("VLLM_", "PYTEST_"))}
    with subprocess.Popen(
        ["env", "--default-signal=INT,HUP", *command],
        cwd=tmp_path,
        env=kept,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        while not (tmp_path / "began").exists():
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(number)
        printed, _ = process.communicate(timeout=60)

    assert process.returncode == pytest.ExitCode.INTERRUPTED, printed
    first, second = evidence_in(tmp_path).runs[0].gates
    assert first.outcome is Outcome.PASS
    assert number.name in second.error
    assert f"{MODEL}: INCONCLUSIVE" in printed


def test_gates_end_with_their_rollout_whatever_signals_are_ignored() -> None:
    lifeline, ours = os.pipe()
    ready, is_ready = os.pipe()

    def gates() -> int:
        os.close(ours)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
        os.environ["VLLM_ROLLOUT_LIFELINE"] = str(lifeline)
        end_with_parent()
        try:  # it may come as soon as the parent has read that this is ready
            os.write(is_ready, b"x")
            time.sleep(60)
        except KeyboardInterrupt as error:
            return 7 if "rollout" in str(error) else 8
        return 9

    pid = forked(gates, print)
    os.close(lifeline)
    os.read(ready, 1)
    os.close(ours)  # as the death of the rollout does
    _, status = os.waitpid(pid, 0)
    for end in (ready, is_ready):
        os.close(end)
    assert os.waitstatus_to_exitcode(status) == 7


def test_nothing_but_the_records_decides_how_a_session_ends() -> None:
    """The entry point's only exit code is for a run without gates and with a misspelt word."""
    door = ("gate_results.py", "session_results.py", "__init__.py")
    elsewhere = [file for file in PLUGIN.glob("*.py") if file.name not in door]
    for word in ("exitstatus", "report.outcome =", "write_evidence", "write_reports", "gate_run("):
        assert [f.name for f in elsewhere if word in f.read_text()] == [], word
