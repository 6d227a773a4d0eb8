"""The gate options, and whether a run asks for gates: decided before pytest knows the options.

Every pytest run where the suite is installed asks it: it stays light.
"""

import os
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import Any

import pytest

from vllm_rollout.resources import GATES
from vllm_rollout.variables import option_or_environment, variable_of

BUILT_IN_MARKERS = {
    "development": "gates of the development environment",
    "staging": "gates of the staging environment",
    "production": "gates of the production environment",
    "preflight": "pre-deployment checks",
    "soak": "how long a revision was healthy",
}
"""Words of `-m` that ask for gates where no policy file names other environments."""

_NAMESPACE = "vllm_rollout"
"""Attribute of `config.option`, by which a worker of xdist gets the options too."""

OPTIONS: dict[str, dict[str, Any]] = {
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


def decide(config: pytest.Config, parser: pytest.Parser) -> bool:
    """Return True if the run asks for gates; note with which options, and have pytest know them."""
    if gates_are_asked_for(config):  # an xdist worker has the options of its controller
        return False
    given, own = take_values_for_no_paths(config, parser)
    asks = _asks_for_gates(config, given, own)
    if asks or config.known_args_namespace.help:
        group = parser.getgroup("vllm-rollout", "gates of a vLLM deployment")
        for name, about in OPTIONS.items():
            if name in own:
                group.addoption(name, dest=f"{_NAMESPACE}{name.replace('-', '_')}", **about)
    if asks:
        defaults = {name: about.get("default") for name, about in OPTIONS.items()}
        setattr(config.option, _NAMESPACE, defaults | given)
    return asks


def _names_in(parser: Any) -> set[str]:
    """The options that others have added. No public API tells them."""
    groups = (parser._anonymous, *parser._groups)  # noqa: SLF001
    return {name for group in groups for option in group.options for name in option.names()}


def take_values_for_no_paths(
    config: pytest.Config, parser: pytest.Parser
) -> tuple[dict[str, Any], set[str]]:
    """Take back what pytest, which does not know the options yet, has read as paths to test.

    Return the values of the gate options that are given, and the names that no other plugin has.
    """
    given, rest = options_in(_arguments(config))
    own = OPTIONS.keys() - _names_in(parser)
    if own & given.keys():
        known = parser.parse_known_args(rest, namespace=copy(config.option))
        config.known_args_namespace.file_or_dir = known.file_or_dir
    return given, own


def _arguments(config: pytest.Config) -> list[str]:
    """The arguments of the run with those that environment and configuration add."""
    added = shlex.split(os.environ.get("PYTEST_ADDOPTS", ""))
    words = [*config.getini("addopts"), *added, *map(str, config.invocation_params.args)]
    return [each for word in words for each in _in_file(word)]


def _in_file(word: str) -> list[str]:
    """The lines of FILE of an argument `@FILE`, as pytest reads them; else the argument."""
    file = Path(word[1:])
    return file.read_text().splitlines() if word[:1] == "@" and file.is_file() else [word]


def options_in(arguments: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Return the values of the gate options among `arguments`, and the other arguments.

    An option of that name may be another plugin's too, and its value there has a default of its
    own: so they are read here.
    """
    given: dict[str, Any] = {}
    rest: list[str] = []
    words = iter(arguments)
    for word in words:
        name, equals, value = word.partition("=")
        if word == "--" or name not in OPTIONS:
            rest += [word, *(words if word == "--" else ())]
            continue
        action = OPTIONS[name].get("action")
        if action == "store_true":
            given[name] = True
            continue
        value = value if equals else next(words, "")
        given[name] = [*given.get(name, ()), value] if action == "append" else value
    return given, rest


def gates_are_asked_for(config: pytest.Config) -> bool:
    """Return True if this is a run of gates."""
    return hasattr(config.option, _NAMESPACE)


def option(config: pytest.Config, name: str) -> Any:
    """Return the value of a gate option of a run of gates: `option(config, "--model")`."""
    return getattr(config.option, _NAMESPACE)[name]


def _asks_for_gates(config: pytest.Config, given: Mapping[str, Any], own: set[str]) -> bool:
    """Return True if an option of the suite's own, a word of `-m`, a path or an id asks for gates.

    A word of `-m` does where a model or an option's variable is there, too: others mark tests
    `staging`. `VLLM_ROLLOUT_MODEL` alone does not, nor the key of a server beside a mark: they may
    be left over in another project's shell.
    """
    known = config.known_args_namespace
    paths = known.file_or_dir or _paths_without_arguments(config)
    return (
        bool(own & given.keys())
        or any(names_gates(config, path) for path in paths)
        or _names_model_of_variable(paths)
        or (
            ("--model" in given or any(variable_of(each[2:]) in os.environ for each in OPTIONS))
            and not (BUILT_IN_MARKERS.keys() | policy_keys()).isdisjoint(_words(known.markexpr))
        )
    )


def _paths_without_arguments(config: pytest.Config) -> list[str]:
    here = config.invocation_params.dir
    return (config.getini("testpaths") if here == config.rootpath else []) or [str(here)]


def marker_words(config: pytest.Config) -> set[str]:
    """Return the words of `-m` that are not negated."""
    return _words(config.getoption("markexpr", ""))


def _words(expression: str | None) -> set[str]:
    asked = re.sub(r"\bnot\s+[\w-]+", "", expression or "")
    return set(re.findall(r"[\w-]+", asked)) - {"and", "or", "not"}


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


def _names_model_of_variable(paths: Iterable[str]) -> bool:
    """Return True if the id of a test among the arguments names one of the variable's models."""
    ids = [parameters_of(path) for path in paths if "::" in path]
    return any(i == m or i.endswith(f"-{m}") for m in models_of_variable() for i in ids)


def policy_keys() -> set[str]:
    """Keys of the policy file, if there is one: environments of its own are among them.

    Read without a YAML library, which every test run would wait for.
    """
    try:
        text = Path(option_or_environment("policy", None) or "rollout.yaml").read_text("utf-8")
    except (OSError, ValueError):
        return set()
    if re.search("^apiVersion:", text, re.MULTILINE):
        return set()  # an object of Kubernetes, which other tools call so
    return set(re.findall(r"[\s{,]([\w-]+)\s*:", text))
