"""Entry point of the pytest plugin: options, and the gates' hooks in runs that ask for gates.

Every pytest run where the suite is installed imports this module: it stays light, and leaves a run
that asks for no gate as it is. What gates need is in `vllm_rollout.pytest_plugin`.
"""

import os
import re
import shlex
import signal
import threading
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from vllm_rollout.resources import GATES
from vllm_rollout.variables import option_or_environment

BUILT_IN_MARKERS = {
    "development": "gates of the development environment",
    "staging": "gates of the staging environment",
    "production": "gates of the production environment",
    "preflight": "pre-deployment checks",
    "soak": "how long a revision was healthy",
}
"""Words of `-m` that ask for gates where no policy file names other environments."""

EXIT_CODE = pytest.StashKey[int | pytest.ExitCode]()
"""How a run of gates ends, or one that was started again; nothing makes it a success."""

_HINT = (
    "A test that asks for `deployment` is a gate. Name environment and model, for example:  "
    "pytest -m staging --model llama-2-7b"
)
_HINT_SECTION = "vllm-rollout"

_OPTIONS: dict[str, dict[str, Any]] = {
    "--model": {
        "action": "append",
        "default": [],
        "metavar": "NAME",
        "help": "model whose deployment is gated, e.g. llama-2-7b; may be repeated",
    },
    "--policy": {
        "metavar": "FILE",
        "help": "policy file that overrides the defaults (default: ./rollout.yaml)",
    },
    "--platform": {"metavar": "NAME", "help": "kubernetes or local (default: the policy's)"},
    "--base-url": {
        "metavar": "URL",
        "help": "address of the model server, instead of the platform's own",
    },
    "--namespace": {
        "metavar": "NAME",
        "help": "namespace of the releases (default: the policy's)",
    },
    "--kube-context": {"metavar": "NAME", "help": "context of the kubeconfig to use"},
    "--report-dir": {"metavar": "DIR", "help": "where reports are written (default: reports)"},
    "--workers": {
        "metavar": "N",
        "help": "processes or pods that make load (default: the policy's load.workers)",
    },
    "--load-in-cluster": {
        "action": "store_true",
        "help": "make load by pods in the deployment's cluster (charts/load-generator) and not "
        "here",
    },
    "--policy-set": {
        "action": "append",
        "default": [],
        "metavar": "KEY=VALUE",
        "help": "override one policy value, e.g. environments.staging.load.rate=20/s; repeatable",
    },
    "--confidence": {
        "metavar": "SHARE",
        "help": "judge by a higher confidence than the policy's, e.g. 99.5%%: for gates that are "
        "asked more than once",
    },
    "--values": {
        "metavar": "FILE",
        "help": "values of the build that the pre-deployment checks are about (default: what the "
        "environment before runs)",
    },
    "--evidence": {
        "metavar": "FILE",
        "help": "write the evidence of the one model to FILE and render no report",
    },
}
"""The gate options; a run that gives any of them asks for gates."""

WITHOUT_VARIABLE = ("policy-set", "confidence", "values", "evidence")
"""Options that have no variable: they are about one run, and not about a shell."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the gate options; most are environment variables `VLLM_ROLLOUT_*` too."""
    group = parser.getgroup("vllm-rollout", "gates of a vLLM deployment")
    for name, about in _OPTIONS.items():
        group.addoption(name, **about)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> Generator[None, object, object]:
    """Have the last word on the exit code: who comes last is outermost."""
    result = yield
    early_config.pluginmanager.register(_LastWord(), "vllm_rollout.pytest_plugin.last_word")
    return result


class _LastWord:
    """Keeps the exit code of gates, whatever a hook of others makes of it."""

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_cmdline_main(
        self, config: pytest.Config
    ) -> Generator[None, int | pytest.ExitCode | None, int | pytest.ExitCode | None]:
        try:
            code = yield
        except SystemExit:
            if not config.stash.get(EXIT_CODE, 0):
                raise
            code = None
        return code or config.stash.get(EXIT_CODE, code)


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> int | pytest.ExitCode | None:
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
    if asks_for_gates(config):
        with interrupts_postponed():
            from vllm_rollout.pytest_plugin import hooks

        config.pluginmanager.register(hooks, "vllm_rollout.pytest_plugin.hooks")
    else:
        config.pluginmanager.register(_Hint(config), "vllm_rollout.pytest_plugin.hint")


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


class _Hint:
    """Says how gates are run, where a gate was run as an ordinary test, or a word is misspelt."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._wanted = False
        self._meant = ""

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        raised = call.excinfo.value if call.excinfo else None
        if isinstance(raised, pytest.FixtureLookupError) and raised.argname == "deployment":
            report.sections.append((_HINT_SECTION, _HINT))
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._wanted = self._wanted or any(name == _HINT_SECTION for name, _ in report.sections)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        words = marker_words(self._config)
        if session.exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED and words:
            self._meant = did_you_mean(words, [*BUILT_IN_MARKERS])
            if self._meant:
                session.exitstatus = pytest.ExitCode.USAGE_ERROR

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self._meant:
            terminalreporter.write_line(f"ERROR: no test is marked so: {self._meant}", red=True)
        if self._wanted:
            terminalreporter.write_line(_HINT, red=True)


def asks_for_gates(config: pytest.Config) -> bool:
    """Return True if an option, a word of `-m`, a path or a node id asks for gates.

    `VLLM_ROLLOUT_MODEL` alone does not: it may be left over in the shell of another project.
    """
    return (
        any(config.getoption(name) for name in _OPTIONS)
        or bool(marker_words(config) & (BUILT_IN_MARKERS.keys() | _policy_keys()))
        or any(names_gates(config, argument) for argument in config.args)
        or _names_model_of_variable(config)
    )


def marker_words(config: pytest.Config) -> set[str]:
    """Return the words of `-m` that are not negated."""
    expression = re.sub(r"\bnot\s+[\w-]+", "", config.getoption("markexpr", "") or "")
    return set(re.findall(r"[\w-]+", expression)) - {"and", "or", "not"}


def did_you_mean(words: Iterable[str], known: Sequence[str]) -> str:
    """Return the question whether a word was meant that is nearly one of `words`, or ""."""
    import difflib

    near = [found for word in words for found in difflib.get_close_matches(word, known, 1, 0.8)]
    return f"did you mean {near[0]}?" if near else ""


def names_gates(config: pytest.Config, argument: str) -> bool:
    """Return True if the argument is a path to the suite's gates, or the folder they are in."""
    path = path_of(config, argument)
    return path.is_relative_to(GATES) or path == GATES.parent


def path_of(config: pytest.Config, argument: str) -> Path:
    """The path that an argument names, be it a path or the id of a test."""
    return (config.invocation_params.dir / argument.partition("::")[0]).resolve()


def parameters_of(node_id: str) -> str:
    """The parameters in the id of a test: `a-b` of `test_x.py::test_x[a-b]`."""
    return node_id.partition("[")[2].removesuffix("]")


def models_of_variable() -> list[str]:
    """The models that `VLLM_ROLLOUT_MODEL` names."""
    by_variable = option_or_environment("model", None) or ""
    return [model for model in by_variable.split(",") if model]


def _names_model_of_variable(config: pytest.Config) -> bool:
    """Return True if the id of a test among the arguments names one of the variable's models."""
    ids = [parameters_of(argument) for argument in config.args if "::" in argument]
    return any(i == m or i.endswith(f"-{m}") for m in models_of_variable() for i in ids)


def _policy_keys() -> set[str]:
    """Keys of the policy file, if there is one: environments of its own are among them.

    Read without a YAML library, which every test run would wait for.
    """
    try:
        text = Path(option_or_environment("policy", None) or "rollout.yaml").read_text("utf-8")
    except (OSError, ValueError):
        return set()
    return set(re.findall(r"[\s{,]([\w-]+)\s*:", text))
