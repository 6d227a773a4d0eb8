"""Entry point of the pytest plugin: options, and the gates' hooks in runs that ask for gates.

Every pytest run where the suite is installed imports this module: it stays light, and leaves a run
that asks for no gate as it is. What gates need is in `vllm_rollout.pytest_plugin`.
"""

import re
from collections.abc import Generator
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


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the gate options; each is an environment variable `VLLM_ROLLOUT_*` too."""
    group = parser.getgroup("vllm-rollout", "gates of a vLLM deployment")
    for name, about in _OPTIONS.items():
        group.addoption(name, **about)


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config, args: list[str]) -> None:
    """Without paths, `pytest -m staging --model M` means this folder's tests and the suite's gates.

    Only where no `testpaths` say otherwise. Early, because the gates' conftest must be found too.
    """
    known = early_config.known_args_namespace
    given = known.model or option_or_environment("model", None)
    if given and not known.file_or_dir and not early_config.getini("testpaths"):
        known.file_or_dir = [str(early_config.invocation_params.dir), str(GATES)]
        args += known.file_or_dir


def pytest_configure(config: pytest.Config) -> None:
    """Declare the built-in markers; bring in hooks and fixtures where gates are asked for."""
    for name in BUILT_IN_MARKERS:  # a marked gate must not stop the tests beside it
        config.addinivalue_line("markers", marker_line(name))
    if asks_for_gates(config):
        from vllm_rollout.pytest_plugin import hooks

        config.pluginmanager.register(hooks, "vllm_rollout.pytest_plugin.hooks")
    else:
        config.pluginmanager.register(_Hint(), "vllm_rollout.pytest_plugin.hint")


def marker_line(name: str) -> str:
    """Return the line of `pytest --markers` for an environment or a built-in marker."""
    return (
        f"{name}: {BUILT_IN_MARKERS.get(name, f'gates of the {name} environment')} (vllm-rollout)"
    )


class _Hint:
    """Says how gates are run, where a gate was run as an ordinary test."""

    def __init__(self) -> None:
        self._wanted = False

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

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self._wanted:
            terminalreporter.write_line(_HINT, red=True)


def asks_for_gates(config: pytest.Config) -> bool:
    """Return True if an option, an environment variable, `-m` or a path asks for gates."""
    if any(config.getoption(name) for name in _OPTIONS):
        return True
    if option_or_environment("model", None):
        return True
    expression = re.sub(r"\bnot\s+[\w-]+", "", config.getoption("markexpr", "") or "")
    words = set(re.findall(r"[\w-]+", expression)) - {"and", "or", "not"}
    return bool(words & (BUILT_IN_MARKERS.keys() | _policy_keys())) or _touches_gates(config)


def _policy_keys() -> set[str]:
    """Keys of the policy file, if there is one: environments of its own are among them.

    Read without a YAML library, which every test run would wait for.
    """
    try:
        text = Path(option_or_environment("policy", None) or "rollout.yaml").read_text("utf-8")
    except (OSError, ValueError):
        return set()
    return set(re.findall(r"[\s{,]([\w-]+)\s*:", text))


def _touches_gates(config: pytest.Config) -> bool:
    folder = config.invocation_params.dir
    for argument in config.args:
        path = (folder / argument.partition("::")[0]).resolve()
        if path.is_relative_to(GATES) or path == GATES.parent:
            return True
    return False
