"""The GitHub action and the GitLab component of `ci/`: by the schemas, and run in a shell."""

import json
import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import check_jsonschema.builtin_schemas as schemas
import pytest
import yaml
from jsonschema.validators import validator_for
from support.ci_jobs import ACTION, action, step_of_action

ROOT = Path(__file__).parents[1]
COMPONENT = ROOT / "ci" / "gitlab" / "templates" / "gate-and-promote.yml"
PAGE = ROOT / "docs" / "how-to" / "ci.md"
_VENDORED = Path(schemas.__file__).parent / "vendor"
INJECTION = "x'; touch injected; \"$(touch injected)`touch injected`"


def errors_by(schema: str, document: Any) -> list[str]:
    """What of the document does not keep to a schema of SchemaStore's."""
    found = json.loads((_VENDORED / f"{schema}.json").read_text(encoding="utf-8"))
    # JSON knows neither dates nor keys that are no text; `on` is one of YAML's words for true.
    text = json.dumps({"on" if key is True else key: value for key, value in document.items()})
    return [
        f"{'/'.join(map(str, error.path))}: {error.message}"
        for error in validator_for(found)(found).iter_errors(json.loads(text))
    ]


def component(**inputs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The component's inputs, and its jobs as GitLab makes them of the values given."""
    header, jobs = yaml.safe_load_all(COMPONENT.read_text(encoding="utf-8"))
    values = {name: about.get("default") for name, about in header["spec"]["inputs"].items()}
    return header, interpolated(jobs, {**values, "model": "llama-2-7b", **inputs})


def interpolated(node: Any, values: dict[str, Any]) -> Any:
    """GitLab's interpolation: of each value of the YAML, after it is read."""
    if isinstance(node, dict):
        return {interpolated(k, values): interpolated(v, values) for k, v in node.items()}
    if isinstance(node, list):
        return [interpolated(inner, values) for inner in node]
    if not isinstance(node, str):
        return node
    if whole := re.fullmatch(r"\$\[\[ inputs\.([\w-]+) \]\]", node):
        return values[whole[1]]
    return re.sub(r"\$\[\[ inputs\.([\w-]+) \]\]", lambda found: str(values[found[1]]), node)


def test_the_action_keeps_to_the_published_schema() -> None:
    assert errors_by("github-actions", action()) == []
    assert errors_by("github-actions", {**action(), "runs": {"using": "composite"}}) != []


def test_the_component_keeps_to_the_published_schema() -> None:
    header, jobs = component()
    assert errors_by("gitlab-ci", header) == []
    assert errors_by("gitlab-ci", jobs) == []
    assert errors_by("gitlab-ci", {"job": {"script": 3}}) != []


def test_the_pages_pipelines_keep_to_the_schemas_and_name_inputs_that_are() -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    documents = [yaml.safe_load(block) for block in blocks]
    workflows = [each for each in documents if "jobs" in each]
    pipelines = [each for each in documents if "include" in each]
    assert workflows
    assert pipelines
    assert [errors_by("github-workflows", each) for each in workflows] == [[]] * len(workflows)
    assert [errors_by("gitlab-ci", each) for each in pipelines] == [[]] * len(pipelines)

    steps = [s for each in workflows for job in each["jobs"].values() for s in job["steps"]]
    used = {name for s in steps if "/ci/github@" in s.get("uses", "") for name in s["with"]}
    assert used
    assert used <= action()["inputs"].keys()
    named = {n for each in pipelines for one in each["include"] for n in one["inputs"]}
    assert named <= component()[0]["spec"]["inputs"].keys()


def test_no_input_is_part_of_a_script_and_each_output_is_given() -> None:
    steps = action()["runs"]["steps"]
    assert [each["run"] for each in steps if "${{" in each.get("run", "")] == []
    _, jobs = yaml.safe_load_all(COMPONENT.read_text(encoding="utf-8"))
    (job,) = jobs.values()
    assert "$[[" not in "".join(job["script"])
    assert action()["outputs"].keys() == {
        *("verdict", "exit-code", "evidence-digest", "run-id", "report-path"),
        *("model", "environment", "build"),
    }


def test_both_have_one_script() -> None:
    (job,) = component()[1].values()
    assert job["script"][1] == action()["runs"]["steps"][1]["run"]


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Path]:
    """A folder with stand-ins for the programs that the scripts start; each notes its words."""
    (tmp_path / "bin").mkdir()
    for name in ("vllm-rollout", "gate-and-promote", "pytest", "pip", "python3"):
        program = tmp_path / "bin" / name
        note = f'printf "%s\\0" {name} "$VLLM_ROLLOUT_POLICY" "$@" >> said; echo >> said'
        make = 'if [ "$2" = venv ]; then mkdir -p "$3/bin"; cp "$PIP" "$3/bin/pip"; fi'
        program.write_text(f"#!/bin/sh\n{note}\n{make if name == 'python3' else ''}\n")
        program.chmod(0o755)
    yield tmp_path
    assert not (tmp_path / "injected").exists()


def ran(folder: Path, script: str, variables: dict[str, str], *, shell: str) -> list[list[str]]:
    """Run a script as the CI's runner does; the words of each program that it started."""
    environment = {
        "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "PIP": str(folder / "bin" / "pip"),
        **variables,
    }
    file = folder / "script"
    file.write_text(script, encoding="utf-8")
    done = subprocess.run(
        [*shlex.split(shell), str(file)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    said = folder / "said"
    lines = said.read_text(encoding="utf-8").split("\0\n")[:-1] if said.exists() else []
    said.unlink(missing_ok=True)
    return [line.split("\0") for line in lines]


PLAN = ["--to=staging", "--reason=why $HOME", "--plan", "--set=a b"]
ODD = [f"--to={INJECTION}", f"--reason={INJECTION}", INJECTION, "--", INJECTION]
CASES: list[tuple[dict[str, str], list[list[str]]]] = [
    (
        {"model": "m", "to": "staging", "reason": "why $HOME", "options": "--plan\n\n--set=a b"},
        [["gate-and-promote", "", *PLAN, "--", "m"]],
    ),
    (
        {"model": "m", "gates": "development", "values": "v.yaml", "policy": "p.yaml"},
        [
            ["vllm-rollout", "p.yaml", "deploy", "--values=v.yaml", "--", "m"],
            ["pytest", "p.yaml", "-m", "development", "--model=m"],
        ],
    ),
    (
        dict.fromkeys(("model", "to", "values", "policy", "reason", "options"), INJECTION),
        [
            ["vllm-rollout", INJECTION, "deploy", f"--values={INJECTION}", "--", INJECTION],
            ["gate-and-promote", INJECTION, *ODD],
        ],
    ),
    (
        {"model": INJECTION, "gates": INJECTION},
        [["pytest", "", "-m", INJECTION, f"--model={INJECTION}"]],
    ),
]


@pytest.mark.parametrize(("inputs", "expected"), CASES)
def test_the_script_starts_what_the_inputs_say_and_nothing_in_them(
    shell: Path, inputs: dict[str, str], expected: list[list[str]]
) -> None:
    script, variables = step_of_action(1, inputs)
    assert ran(shell, script, variables, shell="bash -e -o pipefail") == expected

    (job,) = component(**{"reason": "", **inputs})[1].values()
    script = "\n".join(job["script"])
    words = ran(shell, script, {**job["variables"], "INPUT_PACKAGE": "none"}, shell="sh -e")
    assert words == expected


def test_the_suite_is_installed_from_the_action_or_as_asked(shell: Path) -> None:
    there = {"RUNNER_TEMP": str(shell / "t"), "GITHUB_PATH": str(shell / "path")}
    there["GITHUB_ACTION_PATH"] = str(ACTION.parent)

    def installed(package: str) -> list[list[str]]:
        script, given = step_of_action(0, {"package": package})
        return [w[2:] for w in ran(shell, script, there | given, shell="bash -e -o pipefail")]

    root = f"{ACTION.parent}/../.."
    made = ["-m", "venv", f"{shell}/t/vllm-rollout"]
    quiet = ["install", "--quiet"]
    assert installed("") == [
        made,
        [*quiet, "--require-hashes", "-r", f"{root}/requirements/run.txt"],
        [*quiet, "--no-deps", "--", root],
    ]
    assert Path(f"{root}/requirements/run.txt").is_file()
    assert installed(INJECTION) == [made, [*quiet, "--", INJECTION]]
    assert (shell / "path").read_text().splitlines() == [f"{shell}/t/vllm-rollout/bin"] * 2
    assert installed("none") == []
