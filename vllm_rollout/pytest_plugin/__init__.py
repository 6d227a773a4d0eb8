"""Entry point of the pytest plugin: options, and the gates' hooks in runs that ask for gates.

Every pytest run where the suite is installed imports this module: it stays light, and leaves a run
that asks for no gate as it is. What gates need is in `vllm_rollout.pytest_plugin`.
"""

import re
from pathlib import Path

import pytest

from vllm_rollout.resources import GATES
from vllm_rollout.variables import option_or_environment

_ENVIRONMENTS = frozenset({"development", "staging", "production", "preflight", "soak"})
"""Words of `-m` that ask for gates where no policy file names other environments."""

_OPTIONS = (
    "model",
    "policy",
    "platform",
    "base_url",
    "namespace",
    "kube_context",
    "report_dir",
    "workers",
    "load_in_cluster",
    "policy_set",
    "values",
    "evidence",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the gate options; each is an environment variable `VLLM_ROLLOUT_*` too."""
    group = parser.getgroup("vllm-rollout", "gates of a vLLM deployment")
    group.addoption(
        "--model",
        action="append",
        default=[],
        metavar="NAME",
        help="model whose deployment is gated, e.g. llama-2-7b; may be repeated",
    )
    for option, metavar, text in (
        ("--policy", "FILE", "policy file that overrides the defaults (default: ./rollout.yaml)"),
        ("--platform", "NAME", "kubernetes or local (default: the policy's)"),
        ("--base-url", "URL", "address of the model server, instead of the platform's own"),
        ("--namespace", "NAME", "namespace of the releases (default: the policy's)"),
        ("--kube-context", "NAME", "context of the kubeconfig to use"),
        ("--report-dir", "DIR", "where reports are written (default: reports)"),
        ("--workers", "N", "processes or pods that make load (default: the policy's load.workers)"),
    ):
        group.addoption(option, metavar=metavar, help=text)
    group.addoption(
        "--load-in-cluster",
        action="store_true",
        help="make load by pods in the deployment's cluster (charts/load-generator) and not here",
    )
    group.addoption(
        "--policy-set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override one policy value, e.g. environments.staging.load.rate=20/s; repeatable",
    )
    group.addoption(
        "--values",
        metavar="FILE",
        help="values of the build that the pre-deployment checks are about (default: what the "
        "environment before runs)",
    )
    group.addoption(
        "--evidence",
        metavar="FILE",
        help="write the evidence of the one model to FILE and render no report",
    )


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
    """Bring in the gates' hooks and fixtures where gates are asked for."""
    if asks_for_gates(config):
        from vllm_rollout.pytest_plugin import hooks as session

        config.pluginmanager.register(session, "vllm_rollout.pytest_plugin.hooks")


def asks_for_gates(config: pytest.Config) -> bool:
    """Return True if an option, an environment variable, `-m` or a path asks for gates."""
    if any(getattr(config.option, name, None) for name in _OPTIONS):
        return True
    if option_or_environment("model", None):
        return True
    words = set(re.findall(r"[\w-]+", config.getoption("markexpr", "") or ""))
    return bool(words & _ENVIRONMENTS) or _has_policy(words) or _touches_gates(config)


def _has_policy(words: "set[str]") -> bool:
    """Return True if a policy file may name environments of its own among the words of `-m`."""
    return bool(words) and (
        option_or_environment("policy", None) is not None or Path("rollout.yaml").is_file()
    )


def _touches_gates(config: pytest.Config) -> bool:
    folder = config.invocation_params.dir
    for argument in config.args:
        path = (folder / argument.partition("::")[0]).resolve()
        if path.is_relative_to(GATES) or path == GATES.parent:
            return True
    return False
