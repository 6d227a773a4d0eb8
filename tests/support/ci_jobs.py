"""A job of GitHub Actions: its variables and files, and what its runner reads of them."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

ACTION = Path(__file__).parents[2] / "ci" / "github" / "action.yml"

_COMMAND = re.compile(r"^\s*::([\w-]+)(?: (.*?))?::(.*)$", re.MULTILINE)


def commands(text: str) -> list[tuple[str, dict[str, str], str]]:
    """The workflow commands that GitHub's runner takes out of an output: name, properties, text."""
    found = []
    for name, properties, data in _COMMAND.findall(text.replace("\r", "\n")):
        pairs = (pair.partition("=") for pair in properties.split(",") if pair)
        found.append((name, {key: _given(value) for key, _, value in pairs}, _given(data)))
    return found


def _given(text: str) -> str:
    for escape, char in (("%0D", "\r"), ("%0A", "\n"), ("%3A", ":"), ("%2C", ","), ("%25", "%")):
        text = text.replace(escape, char)
    return text


def given_outputs(file: Path) -> dict[str, str]:
    """The outputs in a file of GitHub's, as its runner reads it."""
    found, lines = {}, iter(file.read_text(encoding="utf-8").split("\n"))
    for line in lines:
        if line:
            name, _, end = line.partition("<<")
            found[name] = "\n".join(iter(lambda: next(lines), end))
    return found


def github_job(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Make this process part of a job whose repository, with `summary` and `outputs`, is there."""
    for name, value in {
        "GITHUB_ACTIONS": "true",
        "GITHUB_STEP_SUMMARY": str(folder / "summary"),
        "GITHUB_OUTPUT": str(folder / "outputs"),
        "GITHUB_WORKSPACE": str(folder),
        "GITHUB_SERVER_URL": "https://github.com",
        "GITHUB_REPOSITORY": "acme/llm",
        "GITHUB_RUN_ID": "42",
    }.items():
        monkeypatch.setenv(name, value)


def told(folder: Path) -> list[str]:
    """The beginnings of the job's summaries: a title, and how it ended."""
    lines = (folder / "summary").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 60 * len([line for line in lines if line.startswith("### ")])
    return [line for line in lines if line.startswith(("### ", "**")) and "Next" not in line]


def action() -> dict[str, Any]:
    """The GitHub action."""
    return dict(yaml.safe_load(ACTION.read_text(encoding="utf-8")))


def step_of_action(number: int, inputs: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    """The script of a step, and the variables that a runner gives it."""
    found = action()
    step = found["runs"]["steps"][number]
    given = {name: about.get("default", "") for name, about in found["inputs"].items()} | inputs
    variables = {
        name: re.sub(r"\$\{\{ inputs\.([\w-]+) \}\}", lambda named: given[named[1]], value)
        for name, value in step["env"].items()
    }
    return step["run"], variables
