"""Commands printed for a person can be typed as they are."""

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from vllm_rollout.next_command import next_command, options_of_this_run

LIBRARY = Path(__file__).parents[1] / "vllm_rollout"
HOLE = "\0"
BY_HAND = re.compile(
    rf"(gate-and-promote|vllm-rollout|kubectl|helm|pytest(?= -)) [a-z-][^.;:,\n]*{HOLE}"
)

WITHOUT_MODEL = re.compile(
    r"(gate-and-promote|vllm-rollout (capacity|deploy|diagnose|history|logs|rollback|sign-off|soak"
    r"|status|uninstall|watch))\b(?!, build| MODEL)"
)
HELP = ("cli/main.py", "pytest_plugin/__init__.py")


def texts(tree: ast.AST) -> Iterator[tuple[int, str]]:
    documented = [node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and node not in documented:
            yield node.lineno, str(node.value)


def texts_with_holes(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts = (v.value if isinstance(v, ast.Constant) else HOLE for v in node.values)
            yield node.lineno, "".join(map(str, parts))


def test_a_printed_command_names_its_model() -> None:
    found = [
        f"{file.relative_to(LIBRARY)}:{line}: {text}"
        for file in LIBRARY.rglob("*.py")
        if file.relative_to(LIBRARY).as_posix() not in HELP
        for line, text in texts(ast.parse(file.read_text("utf-8")))
        if text != "gate-and-promote" and WITHOUT_MODEL.search(text)
    ]
    assert not found


def test_no_message_puts_a_command_together_by_hand() -> None:
    found = [
        f"{file.relative_to(LIBRARY)}:{line}: {text}"
        for file in LIBRARY.rglob("*.py")
        for line, text in texts_with_holes(ast.parse(file.read_text(encoding="utf-8")))
        if BY_HAND.search(text)
    ]
    assert found == [], "use vllm_rollout.next_command"


@pytest.mark.parametrize(
    ("program", "repeated"),
    [
        (
            "gate-and-promote",
            ["--policy", "a b.yaml", "--set", "a=$x", "--kube-context", "it's"],
        ),
        ("pytest", ["--policy", "a b.yaml", "--policy-set", "a=$x", "--kube-context", "it's"]),
        ("helm", ["--kube-context", "it's"]),
        ("kubectl", ["--context", "it's"]),
    ],
)
def test_commands_repeat_this_runs_options_quoted(program: str, repeated: list[str]) -> None:
    chosen = [("--policy", "a b.yaml"), ("--set", "a=$x"), ("--kube-context", "it's")]

    with options_of_this_run(chosen):
        command = next_command(program, "m; rm x")

    assert shlex.split(command) == [program, "m; rm x", *repeated]
    assert shlex.split(next_command(program, "m")) == [program, "m"]
