"""Collection of the suite's gates, wherever the package lies.

pytest's own way depends on `testpaths`, `norecursedirs`, `python_files`, `python_functions`,
`--import-mode`, rootdir and on each other argument: it passes a virtual environment by, and drops
an argument that lies below another. So the gates are collected here, beside what pytest collects.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.machinery import SourceFileLoader
from types import ModuleType
from typing import Any

import pytest

from vllm_rollout.pytest_plugin import fixtures, no_model
from vllm_rollout.pytest_plugin.fixtures import SETTINGS
from vllm_rollout.pytest_plugin.gate_options import (
    BUILT_IN_MARKERS,
    marker_words,
    models_of_variable,
    names_gates,
    option,
    parameters_of,
    path_of,
)
from vllm_rollout.pytest_plugin.gate_selection import (
    deployment_of,
    in_order,
    is_bundled,
    list_gates,
    nothing_selected,
    on_demand_left_out,
    selection_problem,
    without_release,
)
from vllm_rollout.resources import GATES

LABELS = pytest.StashKey[Mapping[str, str]]()
"""The label of each served name among the models of the run."""
_PATHS = pytest.StashKey[list[str]]()


class GateModule(pytest.Module):
    """A module of the suite's gates, whatever pytest is configured to take for a test.

    The fixtures are the module's own, so that none of a conftest can stand in for them.
    """

    def funcnamefilter(self, name: str) -> bool:
        """Tests are called `test_…`."""
        return name.startswith("test_")

    def classnamefilter(self, name: str) -> bool:  # noqa: ARG002 - as pytest calls it
        """No gate is a class."""
        return False

    def _getobj(self) -> ModuleType:
        name = f"vllm_rollout_gates.{self.path.stem}"
        if name not in sys.modules:
            module = ModuleType(name)
            module.__file__ = str(self.path)
            vars(module).update({each.__name__: each for each in fixtures.FIXTURES})
            SourceFileLoader(name, str(self.path)).exec_module(module)
            sys.modules[name] = module
        return sys.modules[name]


def drop_foreign_fixtures(item: Any) -> None:
    """Leave a gate of the suite what it asks for: no `autouse` of a conftest or a plugin.

    `item` is a test, or the definition of one.
    """
    info = item._fixtureinfo  # noqa: SLF001 - no public API tells a test's fixtures
    known: dict[str, Any] = info.name2fixturedefs

    def is_ours(name: str) -> bool:
        return name in info.argnames or (
            name in known
            and known[name][-1].func.__module__ in (fixtures.__name__, item.module.__name__)
        )

    item.fixturenames[:] = filter(is_ours, item.fixturenames)
    for name in known.keys() - set(item.fixturenames):
        del known[name]


@contextmanager
def only_other_paths(config: pytest.Config) -> Iterator[None]:
    """Have pytest collect the arguments that lie outside the suite's gates."""
    given = config.stash[_PATHS] = config.args
    paths = [(each, path_of(config, each)) for each in given]
    config.args = [
        each for each, path in paths if not (path.is_relative_to(GATES) and path.exists())
    ]
    try:
        yield
    finally:
        config.args = given


def paths_given(config: pytest.Config) -> list[str]:
    """Return the paths and node ids of the run, the suite's gates among them."""
    return config.stash.get(_PATHS, config.args)


def collect_gates(session: pytest.Session) -> list[pytest.Item]:
    """Return the suite's gates that the arguments name, or all where they name none.

    Raises:
        UsageError: an argument names a gate that is not there.
    """
    config = session.config
    named = [argument for argument in paths_given(config) if names_gates(config, argument)]
    found: list[pytest.Item] = []
    used: set[str] = set()
    for path in sorted(GATES.glob("test_*.py")):
        of_module = [arg for arg in named if path.is_relative_to(path_of(config, arg))]
        if named and not of_module:
            continue
        inside = path.is_relative_to(config.rootpath)
        node_path = path.relative_to(config.rootpath) if inside else path
        module = GateModule.from_parent(session, path=path, nodeid=node_path.as_posix())
        for item in session.genitems(module):
            naming = [arg for arg in of_module if _names_item(arg, item)]
            used.update(naming)
            if deployment_of(item) is not None and (naming or not named):
                found.append(item)
    if missing := [arg for arg in named if "::" in arg and arg not in used]:
        raise pytest.UsageError(
            f"no such gate: {', '.join(missing)}\n"
            f"See which there are:  {list_gates(models_given(config))}"
        )
    return found


def asks_for_suites_gates(config: pytest.Config) -> bool:
    """Return True if the suite's own gates are asked for, and not those of the team's alone."""
    if any(names_gates(config, argument) for argument in paths_given(config)):
        return True
    typed = any(each.partition("=")[0] == "--model" for each in config.invocation_params.args)
    return bool(models_given(config)) and (typed or bool(environments_named(config)))


def environments_named(config: pytest.Config) -> set[str]:
    """Return the environments, and the gates run on demand, that `-m` names."""
    policy = config.stash[SETTINGS].policy if SETTINGS in config.stash else None
    return marker_words(config) & {*BUILT_IN_MARKERS, *(policy.order if policy else ())}


def models_given(config: pytest.Config) -> list[str]:
    """Models by option, by variable, or else by the ids of the suite's gates among the paths."""
    given: list[str] = option(config, "--model")
    if chosen := given or models_of_variable():
        labels = config.stash.get(LABELS, {})
        return list(dict.fromkeys(labels.get(name, name) for name in chosen))
    environments = config.stash[SETTINGS].policy.order if SETTINGS in config.stash else ()
    ids = [
        parameters_of(argument) for argument in paths_given(config) if names_gates(config, argument)
    ]
    named = (i.partition(f"{e}-")[2] for i in ids for e in environments if i.startswith(f"{e}-"))
    return list(dict.fromkeys(named))


def select(config: pytest.Config, items: list[pytest.Item], collected: int) -> str:
    """Leave out gates that the run does not mean, and order the rest; return what is wrong."""
    settings = config.stash[SETTINGS]
    expression = config.getoption("markexpr", "")
    asked = {"marker_expression": expression, "arguments": paths_given(config)}
    out = without_release(items) if settings.platform is None else []
    out += on_demand_left_out(items, settings.policy, **asked)
    if out := list(dict.fromkeys(out)):  # pytest counts them, and some are out for both reasons
        config.hook.pytest_deselected(items=out)
        items[:] = [item for item in items if item not in out]
    items[:] = in_order(items, settings.policy)
    if any(deployment_of(item) for item in items):
        return selection_problem(items, **asked)
    if asks_for_suites_gates(config):
        return nothing_selected(settings.policy, config, collected, models_given(config))
    environments = sorted(environments_named(config))
    return no_model(environments[0]) if environments else ""


def only_team_gates_named(config: pytest.Config, items: Sequence[pytest.Item]) -> bool:
    """Return True if a path on the command line leads to gates of the team's own, and to no other.

    A path from `addopts`, or one without gates, leaves the suite's gates in.
    """
    typed = set(config.invocation_params.args) & set(paths_given(config))
    if any(names_gates(config, argument) for argument in typed):
        return False
    paths = [path_of(config, argument) for argument in typed]
    return any(
        item.path.resolve().is_relative_to(path)
        for item in items
        if deployment_of(item) is not None and not is_bundled(item.path)
        for path in paths
    )


def _names_item(argument: str, item: pytest.Item) -> bool:
    test = argument.partition("::")[2]
    return test in ("", item.name, getattr(item, "originalname", item.name))
