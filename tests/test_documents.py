"""The documentation is true: generated parts are fresh, links hold, what it shows can be used."""

import json
import re
import runpy
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jsonschema
import pytest
import xdist.plugin
import yaml
from _pytest.config import get_config

from vllm_rollout.cli.main import _COMMANDS, _imported
from vllm_rollout.judge.diagnosis import Finding
from vllm_rollout.load.trace import read_trace
from vllm_rollout.model.errors import ExitCode
from vllm_rollout.model.evidence import Evidence, GateResult, GateRun, LoadSummary
from vllm_rollout.model.load_result import RequestOutcome
from vllm_rollout.model.verdict import Verdict
from vllm_rollout.policy import load_policy
from vllm_rollout.policy.load_profile import EarlyStop
from vllm_rollout.policy.notifications import MessageKind
from vllm_rollout.policy.schema import policy_schema
from vllm_rollout.pytest_plugin.gate_options import OPTIONS
from vllm_rollout.resources import DEFAULT_POLICY
from vllm_rollout.rollout.audit_log import Decision, DecisionKind
from vllm_rollout.rollout.model_status import CanaryStatus, EnvironmentStatus, ModelStatus

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    page
    for where in ("*.md", "docs/**/*.md", "charts/**/*.md", "tests/cluster/*.md")
    for page in ROOT.glob(where)
)
PUBLIC_KEY = "AAAAC3NzaC1lZDI1NTE5AAAAI" + "A" * 43
OTHERS = {
    "cat", "cd", "cosign", "cp", "curl", "docker", "echo", "export", "git", "helm", "jq", "kubectl",
    "loginctl", "mkdir", "openssl", "pip", "printf", "ssh-keygen", "sudo", "systemctl", "true",
}  # fmt: skip
"""Programs of others: their command lines are theirs."""


@pytest.fixture(scope="module")
def generator() -> dict[str, Any]:
    """The names of docs/generate.py."""
    return runpy.run_path(str(ROOT / "docs" / "generate.py"))


class Block(NamedTuple):
    """A fenced block of a page."""

    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


@cache
def blocks() -> tuple[Block, ...]:
    return tuple(each for page in PAGES for each in _blocks_of(page))


def _blocks_of(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    for found in re.finditer(r"^( *)```(\w*)\n(.*?)^\1```", text, re.MULTILINE | re.DOTALL):
        body = re.sub(f"^{found[1]}", "", found[3], flags=re.MULTILINE)
        yield Block(page, text.count("\n", 0, found.start()) + 1, found[2], body)


def prose(page: Path) -> str:
    return re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)


def test_generated_parts_are_fresh(generator: dict[str, Any]) -> None:
    stale = [
        page
        for page in generator["pages"]()
        if generator["generated"](text := page.read_text(encoding="utf-8")) != text
    ]
    assert stale == [], "run make docs"


def test_the_reference_has_every_key_of_the_policy(generator: dict[str, Any]) -> None:
    page = (ROOT / "docs/reference/policy.md").read_text(encoding="utf-8")
    keys = list(generator["policy_keys"]())
    assert len(keys) > 200
    assert [key for key in keys if f"| {key} |" not in page] == []


def test_every_exit_code_is_explained_to_who_acts_on_it() -> None:
    page = (ROOT / "docs/how-to/operate.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| (\d+) \|", page, re.MULTILINE) == [str(int(c)) for c in ExitCode]


def test_fields_and_kinds_that_programs_read_are_documented() -> None:
    named = {
        "reference/evidence.md": (Evidence, GateRun, GateResult, Verdict, LoadSummary, Decision),
        "reference/commands.md": (ModelStatus, EnvironmentStatus, CanaryStatus, Finding),
    }
    kinds = {
        "reference/evidence.md": DecisionKind,
        "how-to/notifications.md": MessageKind,
        "reference/gates.md": RequestOutcome,
    }
    wanted = [(page, f.name) for page, owners in named.items() for o in owners for f in fields(o)]
    wanted += [(page, kind.value) for page, every in kinds.items() for kind in every]
    pages = {page: (ROOT / "docs" / page).read_text(encoding="utf-8") for page, _ in wanted}
    assert [(page, name) for page, name in wanted if f"`{name}`" not in pages[page]] == []


def test_links_hold() -> None:
    broken = []
    for page in PAGES:
        for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
            path, _, anchor = target.partition("#")
            there = (page.parent / path).resolve() if path else page
            whole = there.exists() and (not anchor or anchor in anchors(there))
            if not (re.match(r"\w+:", target) or whole):
                broken.append(f"{page.relative_to(ROOT)}: {target}")
    assert broken == []


@cache
def anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    plain = (re.sub(r"\[(.*?)\]\(.*?\)|`", r"\1", title).strip().lower() for title in titles)
    return {re.sub(r"[^\w\- ]", "", title).replace(" ", "-") for title in plain}


# What is typed


def command_lines(block: Block) -> list[str]:
    """The command lines of a block: all of a script, a CI's jobs, those after `$ ` of an output."""
    if block.language == "yaml":
        return list(jobs(yaml.safe_load(block.text)))
    text = re.sub(r"<<'(\w+)'\n.*?^\1$", "", block.text, flags=re.DOTALL | re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    if block.language == "bash":
        return [line for line in lines if shlex.split(line, comments=True)]
    return [line[2:] for line in lines if line.startswith("$ ")]


def jobs(value: Any) -> Iterator[str]:
    """The command lines of a CI's file: GitLab's `script`, GitHub's `run`."""
    if isinstance(value, list):
        for inner in value:
            yield from jobs(inner)
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if key in {"script", "before_script", "run"}:
                lines = inner if isinstance(inner, list) else str(inner).splitlines()
                yield from (re.sub(r"\$\{\{.*?\}\}", "x", str(line)) for line in lines)
            else:
                yield from jobs(inner)


def test_command_lines_are_taken_by_the_programs_they_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_gates").mkdir()
    typed = [(block, line) for block in blocks() for line in command_lines(block)]
    assert len(typed) > 100
    for block, line in typed:
        try:
            type_in(line)
        except Exception as error:
            error.add_note(f"{block}: {line}")
            raise


def test_commands_named_in_sentences_are_there() -> None:
    named = [
        (page, command)
        for page in PAGES
        for command in re.findall(r"`vllm-rollout ([a-z][\w-]*)(?![\w-]| \d)", prose(page))
    ]
    assert len(named) > 50
    assert [(page.name, each) for page, each in named if each not in _COMMANDS] == []


def test_every_command_has_examples_that_are_taken(generator: dict[str, Any]) -> None:
    for name, command in generator["each_command"]():
        examples = generator["EXAMPLES"].get(name)
        assert examples, name
        for each in examples:
            assert each in command.epilog
            assert each.removeprefix("vllm-rollout ").startswith(name)
            type_in(each)


def test_the_reference_has_every_option_of_every_command(generator: dict[str, Any]) -> None:
    page = (ROOT / "docs/reference/commands.md").read_text(encoding="utf-8")
    shared = page.partition("## Every command")[0]
    for name, command in generator["each_command"]():
        section = page.partition(f"\n### {name}\n")[2].partition("\n### ")[0]
        assert section, name
        there = section + (shared if "every command about releases" in section else "")
        options = [each.opts[0] for each in command.params if each.opts[0].startswith("--")]
        assert [each for each in options if not re.search(rf"`{each}[` ]", there)] == [], name


def test_every_option_tells_its_default(generator: dict[str, Any]) -> None:
    """Or is required, a switch, or has none: then nothing of the kind is done."""
    without = {"--as", "--gates", "--key", "--note", "--signed", "--set", "--values", "--version"}
    silent = {
        f"{name} {option.opts[0]}"
        for name, command in generator["each_command"]()
        for option in command.params
        if option.opts[0][:2] == "--"
        if name != "simulate" and not option.is_flag and not option.required
        if option.opts[0] not in without and not generator["default_of"](option)
    }
    assert silent == set()


def type_in(line: str) -> None:
    """Have the program that a line names read it, and do nothing.

    Raises:
        Exception: it does not take the line.
    """
    # A shell's own: what a variable is set to, and pipes.
    line = re.sub(r"^\s*\w+=\$\((.*?)\)?$", r"\1", line).strip().removesuffix("|")
    *before, line = line.split(" | ")
    for each in before:
        type_in(each)
    words = shlex.split(line.strip().removesuffix(")"), comments=True)
    if words[-1] == "&":
        words.pop()
    if ">" in words:
        words = words[: words.index(">")]
    while words and "=" in words[0]:
        words.pop(0)
    program, *rest = words or ["true"]
    if program in {"vllm-rollout", "gate-and-promote"}:
        suite([*([program] if program == "gate-and-promote" else []), *rest])
    elif program == "pytest":
        pytest_parser().parse(rest)
    elif program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert {word for word in rest if "=" not in word} <= set(targets)
    elif program == "locust":
        own = (ROOT / "loadtests/options.py").read_text()
        theirs = {"--headless", "--host", "--run-time"}
        assert all(f'"{word}"' in own for word in rest if word[:2] == "--" and word not in theirs)
    else:
        assert program in OTHERS, program


def suite(words: list[str]) -> None:
    name, *rest = words
    command = _imported(name)
    if hasattr(command, "commands"):
        command = command.commands[rest.pop(0)]
    command.make_context(name, rest)


@cache
def pytest_parser() -> pytest.Parser:
    parser = get_config()._parser
    for name, about in OPTIONS.items():
        parser.addoption(name, **about)
    xdist.plugin.pytest_addoption(parser)
    return parser


# What is written


class Yaml12(yaml.SafeLoader):
    """Reads `on`, dates and times of day as text, as an editor that follows YAML 1.2 does."""


Yaml12.yaml_implicit_resolvers = {
    first: [(tag, shape) for tag, shape in resolvers if tag.endswith((":null", ":float", ":merge"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
Yaml12.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("^(true|false)$"), [*"tf"])
Yaml12.add_implicit_resolver("tag:yaml.org,2002:int", re.compile("^-?[0-9]+$"), [*"-0123456789"])


def test_policies_load_and_editors_take_them(tmp_path: Path) -> None:
    schema = policy_schema()
    editor = jsonschema.Draft202012Validator(schema)
    policies = [DEFAULT_POLICY.read_text(encoding="utf-8")]
    for block in blocks():
        if block.language == "yaml":
            document = yaml.load(block.text, Loader=Yaml12)
            if isinstance(document, dict) and document.keys() <= schema["properties"].keys():
                policies.append(block.text)
    assert len(policies) > 18
    file = tmp_path / "rollout.yaml"
    for text in policies:
        file.write_text(re.sub("AAAA\\w*…", PUBLIC_KEY, text), encoding="utf-8")
        assert load_policy(file)
        wrong = [error.message for error in editor.iter_errors(yaml.load(text, Loader=Yaml12))]
        assert wrong == [], text


def test_python_is_python() -> None:
    for block in blocks():
        if block.language == "python":
            compile(block.text, str(block), "exec")


def load_blocks() -> list[str]:
    return [block.text for block in blocks() if block.page.name == "load.md"]


def test_what_is_called_the_default_of_early_stop_is() -> None:
    (text,) = (text for text in load_blocks() if "early_stop: {" in text)
    stop = load_policy().environments["staging"].load.early_stop
    assert isinstance(stop, EarlyStop)
    assert f"{{when: {stop.when}, risk: {stop.risk:.0%}, stall: {stop.stall_seconds:g}s}}" in text


def test_the_trace_and_the_prompts_can_be_read(tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text(next(text for text in load_blocks() if text.startswith("TIMESTAMP")))
    assert [entry.output_tokens for entry in read_trace(trace)] == [5, 6]
    for line in next(text for text in load_blocks() if '{"prompt"' in text).splitlines():
        assert json.loads(line).keys() <= {"prompt", "messages"}
