"""Commands printed for a person can be typed as they are."""

import ast
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vllm_rollout import next_command as commands
from vllm_rollout.cli.main import _imported
from vllm_rollout.model.deployment import Deployment
from vllm_rollout.next_command import next_command, options_of_this_run, words_of_promotion
from vllm_rollout.pytest_plugin.gate_options import options_in

LIBRARY = Path(__file__).parents[1] / "vllm_rollout"
HOLE = "\0"
BY_HAND = re.compile(
    rf"(gate-and-promote|vllm-rollout|kubectl|helm|pytest(?= -)) [a-z-][^.;:,\n]*{HOLE}"
)

WITHOUT_MODEL = re.compile(
    r"(gate-and-promote|vllm-rollout (capacity|deploy|diagnose|history|logs|rollback|sign-off|soak"
    r"|status|uninstall|watch))\b(?!, build| MODEL)"
)
NO_COMMANDS = ("gate-and-promote", "vllm-rollout sign-off 1")
HELP = ("cli/main.py", "cli/examples.py", "pytest_plugin/__init__.py")


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
        if text not in NO_COMMANDS and WITHOUT_MODEL.search(text)
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


SERVING = Deployment("m", "production")
PRINTING: dict[str, Callable[..., str]] = {
    "next_command": next_command,
    "release_command": lambda verb, _, *words: commands.release_command(verb, SERVING, *words),
    "promote_command": commands.promote_command,
    "sign_off_command": commands.sign_off_command,
}
EVERYTHING = [
    ("--policy", "a b.yaml"), ("--set", "confidence=99%"), ("--platform", "local"),
    ("--namespace", "n"), ("--kube-context", "it's"), ("--base-url", "http://x"),
]  # fmt: skip
WITHOUT_OPTIONS = ("next_command.py", "init.py")  # no policy yet, when `init` prints
PROMOTION = ("--base-url", "http://x?a&b", "--report-dir", "a b", "--gates", ".", "--workers", "2")


def printed_commands() -> Iterator[str]:
    """Each command that a message has, with `1` for what is only known when it is printed."""
    for file in LIBRARY.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            match node:
                case ast.Call(func=ast.Name(id=name), args=args) if name in PRINTING:
                    words = [a for a in args if not isinstance(a, ast.Starred)]
                    known = [w.value if isinstance(w, ast.Constant) else "1" for w in words]
                    if file.name not in WITHOUT_OPTIONS and len(known) > 1:
                        yield PRINTING[name](*("1" if str(w).isupper() else w for w in known))


def test_every_printed_command_is_one_that_can_be_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with options_of_this_run(EVERYTHING), words_of_promotion("1", PROMOTION):
        typed = [shlex.split(command) for command in printed_commands()]
    for program, verb, *words in typed:
        if program == "vllm-rollout":
            _imported(verb).make_context(verb, words)
        elif program == "gate-and-promote":
            _imported(program).make_context(program, [verb, *words])
        elif program == "pytest":
            given, rest = options_in([verb, *words])
            assert given["--policy-set"] == ["confidence=99%"]
            assert {word for word in rest if word.startswith("-")} <= {"-m", "-q", "--collect-only"}
    assert {"vllm-rollout", "gate-and-promote", "pytest"} <= {program for program, *_ in typed}


def test_a_promotions_own_words_are_repeated_for_its_environment_alone() -> None:
    with words_of_promotion("production", PROMOTION):
        again = commands.promote_command("m", "production")
        before = commands.promote_command("m", "staging")
    assert shlex.split(again) == ["gate-and-promote", "m", "--to", "production", *PROMOTION]
    assert shlex.split(before) == ["gate-and-promote", "m", "--to", "staging"]
    assert commands.promote_command("m", "production") == "gate-and-promote m --to production"
