"""Which gates a run has: found wherever they lie, told apart from a team's tests, never none."""

from pathlib import Path

import pytest
from support.gate_runs import MODEL, evidence_in, run_gates, started_gates

from vllm_rollout.resources import GATES

NOWHERE = "http://127.0.0.1:9"
OWN = "import pytest\n@pytest.mark.staging\ndef test_own(): pass\n"
GATE = (
    "from vllm_rollout.judge import check\n"
    "def test_ours(deployment, verdict): verdict(check(True, 'fine'))\n"
)
LEFT = ("-m", "staging", "--model", MODEL, "--base-url", NOWHERE, "--evidence", "evidence.json")


def repository(folder: Path, ini: str = "") -> None:
    (folder / "app").mkdir()
    (folder / "app" / "test_app.py").write_text(OWN)
    (folder / "pytest.ini").write_text(f"[pytest]\n{ini}\nmarkers = staging: ours\n")


@pytest.mark.parametrize(
    ("ini", "arguments"),
    [
        ("testpaths = app\nnorecursedirs = * .*\npython_files = test_app.py", ()),
        ("python_functions = test_own\naddopts = app --import-mode=append", ()),
        ("addopts = --ignore-glob=*gates* --strict-markers", ("app", "--rootdir=app")),
        ("", (str(GATES / "test_health.py"), str(GATES), "app")),
    ],
)
def test_gates_are_found_whatever_the_configuration_says(
    tmp_path: Path, ini: str, arguments: tuple[str, ...]
) -> None:
    repository(tmp_path, ini)
    run = run_gates(tmp_path, *arguments, *LEFT, "-k", "health or own")

    assert run.returncode == 1, run.stdout
    assert [gate.gate for gate in evidence_in(tmp_path).runs[0].gates] == ["health"]
    assert "1 passed, " in run.stdout, run.stdout


def test_a_path_to_a_teams_own_gates_means_those(tmp_path: Path) -> None:
    (tmp_path / "test_ours.py").write_text(GATE)
    run = run_gates(tmp_path, "test_ours.py", *LEFT)

    assert run.returncode == 0, run.stdout
    assert [gate.gate for gate in evidence_in(tmp_path).runs[0].gates] == ["ours"]
    assert "PASS of the part that was run (1 of 8 gates); nothing may be promoted" in run.stdout


def test_under_xdist_the_suites_gates_run_beside_a_teams(tmp_path: Path) -> None:
    (tmp_path / "test_ours.py").write_text(GATE)
    run = started_gates(tmp_path, "-n", "1", *LEFT, "-k", "health or ours")

    gates = evidence_in(tmp_path).runs[0].gates
    assert {gate.gate for gate in gates} == {"health", "ours"}, run.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("-m", "stagin", "--model", MODEL), "did you mean staging?"),
        (("-m", "staging", "--model", MODEL, "-k", "nothing"), "-k 'nothing'"),
        (("-m", "slow", "--model", MODEL), "development, staging, production"),
        ((str(GATES / "test_health.py::test_nothing"), *LEFT), "test_nothing"),
    ],
)
def test_a_run_that_asked_for_gates_and_has_none_says_why(
    tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    run = run_gates(tmp_path, *arguments, changes=())

    assert run.returncode == pytest.ExitCode.USAGE_ERROR, run.stdout
    assert words in run.stdout


def test_without_a_model_a_teams_own_marked_tests_are_run_as_such(tmp_path: Path) -> None:
    repository(tmp_path)
    run = run_gates(tmp_path, "-m", "staging", changes=())

    assert run.returncode == 0, run.stdout
    assert "1 passed" in run.stdout
    assert "no gate was run" in run.stdout


def test_a_printed_node_id_can_be_typed_back(tmp_path: Path) -> None:
    listed = run_gates(tmp_path, "--co", "-q", *LEFT, "-k", "p95").stdout.splitlines()
    (node_id,) = [line for line in listed if "test_p95_latency[" in line]
    run = run_gates(tmp_path, node_id, "--base-url", NOWHERE, "--evidence", "evidence.json")

    assert run.returncode == 1, run.stdout
    (gate,) = evidence_in(tmp_path).runs[0].gates
    assert gate.item == "test_p95_latency[staging-llama-2-7b]"


def test_a_policy_file_elsewhere_does_not_move_the_run(tmp_path: Path) -> None:
    """pytest takes an option's value that stands apart for a path, and its folder for the root."""
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        repository(tmp_path / name)
    there = tmp_path / "there"
    (there / "pytest.ini").write_text("[pytest]\naddopts = -k nothing\n")
    (there / "rollout.yaml").write_text("confidence: 99%\n")
    asked = (*LEFT, "-k", "health or own", "--policy", str(there / "rollout.yaml"))
    run = run_gates(tmp_path / "here", *asked)

    assert f"rootdir: {tmp_path / 'here'}" in run.stdout, run.stdout
    (gates,) = evidence_in(tmp_path / "here").runs
    assert (gates.confidence, [gate.gate for gate in gates.gates]) == (0.99, ["health"])


def test_a_conftests_fixtures_stand_in_for_none_of_the_suites(tmp_path: Path) -> None:
    names = ("deployment", "verdict", "client", "servers", "settings", "slo", "policy")
    fixtures = (f"@pytest.fixture\ndef {name}(): return Anything()\n" for name in names)
    (tmp_path / "conftest.py").write_text(
        "import pytest\nclass Anything:\n"
        "    def __getattr__(self, name): return self\n"
        "    def __call__(self, *a, **k): return self\n" + "".join(fixtures)
    )
    run = run_gates(tmp_path, *LEFT, "-k", "health")

    assert run.returncode == 1, run.stdout
    assert evidence_in(tmp_path).runs[0].unreachable == NOWHERE


REACHING = """
import pytest
from pathlib import Path
def note(text):
    with Path("seen").open("a") as seen: seen.write(f"{text} ")
@pytest.fixture(autouse=True, params=[1, 2])
def twice(request): note("twice")
@pytest.fixture
def used(): note("used")
@pytest.fixture
def added(): note("added")
@pytest.fixture(autouse=True, scope="session")
def of_session():
    note("up")
    yield
    note("down")
def pytest_collection_modifyitems(items):
    for item in items: item.fixturenames.insert(0, "added")
"""


def test_a_conftests_fixtures_reach_none_of_the_suites_gates(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(REACHING)
    (tmp_path / "pytest.ini").write_text("[pytest]\nusefixtures = used\n")
    (tmp_path / "test_ours.py").write_text(GATE)
    asked = ("-m", "development or staging", *LEFT[2:], "-k", "health or ours")
    run_gates(tmp_path, *asked, changes=())

    gates = [run.gates for run in evidence_in(tmp_path).runs]
    assert [[gate.gate for gate in each] for each in gates] == [["health", "ours", "ours"]] * 2
    own = ["added", "up", "used", "twice", "added", "used", "twice", "down"]
    assert (tmp_path / "seen").read_text().split() == own * 2
