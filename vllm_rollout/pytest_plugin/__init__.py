"""Entry point of the pytest plugin: options, and the gates' hooks in runs that ask for gates.

Every pytest run where the suite is installed imports this module: it stays light, and leaves a run
that asks for no gate as it is. What gates need is in `vllm_rollout.pytest_plugin`.
"""

import os
import shlex
import signal
import threading
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from vllm_rollout.pytest_plugin.gate_options import (
    BUILT_IN_MARKERS,
    decide,
    gates_are_asked_for,
    marker_words,
    policy_keys,
    take_values_for_no_paths,
)

EXIT_CODE = pytest.StashKey[int | pytest.ExitCode]()
"""How a run of gates ends, or one that was started again; nothing makes it a success."""

_HINT = (
    "A test that asks for `deployment` is a gate. Name environment and model, for example:  "
    "pytest -m staging --model llama-2-7b"
)
_NOT_FOUND = "fixture 'deployment' not found"
SOME_MODEL = "llama-2-7b"
"""Stands in commands for a model that is not known."""


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    """Decide at once where a conftest brings the plugin in: no later hook would be asked."""
    names = [name for name, plugin in pluginmanager.list_name_plugin() if plugin is not None]
    if any(name.endswith("conftest.py") for name in names):
        config: Any = pluginmanager.get_plugin("pytestconfig")
        _decide(config, parser)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_load_initial_conftests(
    early_config: pytest.Config, parser: pytest.Parser
) -> Generator[None, object, object]:
    """Decide when every plugin and conftest has its options: an option of theirs is not ours."""
    take_values_for_no_paths(early_config, parser)
    try:
        return (yield)
    finally:
        _decide(early_config, parser)


def _decide(config: pytest.Config, parser: pytest.Parser) -> None:
    if decide(config, parser):
        config.pluginmanager.register(_Ending(), "vllm_rollout.pytest_plugin.ending")


class _Ending:
    """Begins a run of gates once more where it must, and keeps its exit code."""

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_cmdline_main(
        self, config: pytest.Config
    ) -> Generator[None, int | pytest.ExitCode | None, int | pytest.ExitCode | None]:
        """Have the last word on the exit code, whatever a hook of others makes of it."""
        try:
            code = yield
        except SystemExit:
            if not config.stash.get(EXIT_CODE, 0):
                raise
            code = None
        return code or config.stash.get(EXIT_CODE, code)

    @pytest.hookimpl(tryfirst=True, specname="pytest_cmdline_main")
    def pytest_start_again(self, config: pytest.Config) -> int | pytest.ExitCode | None:
        """Have the options' files mean no paths."""
        return started_again(config)


def started_again(config: pytest.Config) -> int | pytest.ExitCode | None:
    """Start again with `--policy=FILE` where `--policy FILE` led pytest to FILE's folder.

    Before it knows the option pytest takes FILE for a path to test, and so for where rootdir and
    configuration are. The `addopts` of a configuration are read after that.
    """
    if hasattr(config, "workerinput"):
        return None
    given = config.invocation_params
    added = shlex.split(os.environ.get("PYTEST_ADDOPTS", ""))
    typed_joined, added_joined = (_joined(given.dir, each) for each in (given.args, added))
    if (typed_joined, added_joined) == ([*given.args], added):
        return None
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PYTEST_ADDOPTS", shlex.join(added_joined))
        code = pytest.main(typed_joined, plugins=given.plugins)
    config.stash[EXIT_CODE] = code
    return code


def _joined(folder: Path, arguments: Sequence[str]) -> list[str]:
    """The arguments, with `=` between an option and its file where that is in another folder."""
    joined = [str(each) for each in arguments]
    for at in range(len(joined) - 2, -1, -1):
        if joined[at] in ("--policy", "--values", "--evidence", "--report-dir"):
            path = folder / joined[at + 1]
            if path.exists() and path.absolute().parent != folder:
                joined[at : at + 2] = [f"{joined[at]}={joined[at + 1]}"]
    return joined


def pytest_configure(config: pytest.Config) -> None:
    """Declare the built-in markers; bring in hooks and fixtures where gates are asked for."""
    for name in BUILT_IN_MARKERS:  # a marked gate must not stop the tests beside it
        config.addinivalue_line("markers", marker_line(name))
    if gates_are_asked_for(config):
        with interrupts_postponed():
            from vllm_rollout.pytest_plugin import hooks

        config.pluginmanager.register(hooks, "vllm_rollout.pytest_plugin.hooks")


@contextmanager
def interrupts_postponed() -> Iterator[None]:
    """Keep Ctrl-C until the end: pydantic makes an error of its own of one in a class's making."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if came:
            signal.raise_signal(signal.SIGINT)


def marker_line(name: str) -> str:
    """Return the line of `pytest --markers` for an environment or a built-in marker."""
    return (
        f"{name}: {BUILT_IN_MARKERS.get(name, f'gates of the {name} environment')} (vllm-rollout)"
    )


def pytest_terminal_summary(
    terminalreporter: "pytest.TerminalReporter", exitstatus: int, config: pytest.Config
) -> None:
    """Say how gates are run, where one was run as an ordinary test, or a word is misspelt."""
    if gates_are_asked_for(config):
        return
    words = marker_words(config)
    if words and (environments := sorted(words & (BUILT_IN_MARKERS.keys() | policy_keys()))):
        terminalreporter.write_line(f"no gate was run: {no_model(environments[0])}", yellow=True)
    elif exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED and (
        meant := did_you_mean(words, [*BUILT_IN_MARKERS])
    ):
        terminalreporter.write_line(f"no test is marked so: {meant}", yellow=True)
    if any(_NOT_FOUND in str(each.longrepr) for each in terminalreporter.getreports("error")):
        terminalreporter.write_line(_HINT, red=True)


def no_model(environment: str) -> str:
    """Return the error of a run without a model."""
    from vllm_rollout.next_command import next_command

    return (
        "no model given.\n"
        "Name the model, for example:  "
        f"{next_command('pytest', '-m', environment, '--model', SOME_MODEL)}\n"
        "(--model may be repeated; VLLM_ROLLOUT_MODEL works too)"
    )


def did_you_mean(words: Iterable[str], known: Sequence[str]) -> str:
    """Return the question whether a word was meant that is nearly one of `words`, or ""."""
    import difflib

    near = [found for word in words for found in difflib.get_close_matches(word, known, 1, 0.8)]
    return f"did you mean {near[0]}?" if near else ""
