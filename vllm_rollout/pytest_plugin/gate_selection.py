"""Selection of gates and of the deployments that they run against.

A test that uses the `deployment` fixture is a gate. It is parametrized over environment × model,
and each parameter carries its environment's marker, so `-m staging` selects by ordinary marker
selection. Gates of this suite run where the policy lists them; a team's own gate runs in every
environment, or in those it is marked with.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest

from vllm_rollout.model.deployment import Deployment
from vllm_rollout.model.units import counted
from vllm_rollout.next_command import next_command
from vllm_rollout.policy import Policy
from vllm_rollout.pytest_plugin import SOME_MODEL, did_you_mean, no_model
from vllm_rollout.pytest_plugin.gate_options import marker_words, parameters_of
from vllm_rollout.resources import GATES
from vllm_rollout.settings import Settings

NO_MODEL = "no-model-given"
PREFLIGHT = "preflight"
SOAK = "soak"
ON_DEMAND = (PREFLIGHT, SOAK)
"""Gates that are run only where they are asked for by name."""
_ASK_THE_PLATFORM = ("pods", "gpu_memory", "kv_cache", "queue", PREFLIGHT, SOAK)


def expected_gates(policy: Policy, environment: str, *, of_release: bool) -> tuple[str, ...]:
    """The gates the policy asks for, cheap ones first.

    With a URL alone (not `of_release`) those that ask the platform are not expected.
    """
    gates = policy.gates_of(environment)
    return tuple(g for g in gates if of_release or g not in _ASK_THE_PLATFORM)


def gate_name(path: Path) -> str:
    """The gate a test module holds: `gates/test_error_rate.py` is `error_rate`."""
    return path.stem.removeprefix("test_")


def gate_of(item: pytest.Item) -> str:
    """The gate an item is: its module's, or, of the pre-deployment checks, one for each."""
    gate = gate_name(item.path)
    if gate != PREFLIGHT:
        return gate
    return preflight_gate(getattr(item, "originalname", item.name).removeprefix("test_"))


def preflight_gate(check: str) -> str:
    """The gate that a pre-deployment check is called by, e.g. `preflight-image`."""
    return f"{PREFLIGHT}-{check}"


def uses(item: pytest.Item, *fixtures: str) -> bool:
    """Return True if the item asks for any of the fixtures, directly or by way of others."""
    return not set(fixtures).isdisjoint(getattr(item, "fixturenames", ()))


def judges_load(item: pytest.Item) -> bool:
    """Return True if the gate judges the deployment's load run."""
    return uses(item, "judged_load")


def on_demand_left_out(
    items: Sequence[pytest.Item],
    policy: Policy,
    *,
    marker_expression: str,
    arguments: Sequence[str],
) -> list[pytest.Item]:
    """The pre-deployment checks and soaks among `items` that are not to be looked at.

    The former are about a build that is not deployed yet, and a soak takes a day that nothing else
    should wait for: `-m staging` alone does not mean them. They are asked for by their file or by
    `-m "staging and preflight"`. Of the checks, the policy leaves out what is off.
    """
    words = re.findall(r"[\w-]+", marker_expression)
    left_out = []
    for item in items:
        deployment, gate = deployment_of(item), gate_name(item.path)
        if deployment is None or gate not in ON_DEMAND or not is_bundled(item.path):
            continue
        asked = gate in words or any(f"test_{gate}" in argument for argument in arguments)
        checks = policy.for_model(deployment.model).preflight_of(deployment.environment)
        off = gate == PREFLIGHT and gate_of(item) not in map(preflight_gate, checks)
        if not asked or off:
            left_out.append(item)
    return left_out


def is_bundled(path: Path) -> bool:
    """Return True if the module is one of the suite's own gates."""
    return path.resolve().parent == GATES


def environments_of(policy: Policy, path: Path, marks: Iterable[pytest.Mark]) -> list[str]:
    """The environments in which a gate runs, in the policy's order."""
    marked = {mark.name for mark in marks} & set(policy.order)
    if marked:
        return [name for name in policy.order if name in marked]
    if is_bundled(path) and gate_name(path) == SOAK:
        return [name for name in policy.order if policy.environments[name].soak is not None]
    if is_bundled(path) and gate_name(path) != PREFLIGHT:
        gate = gate_name(path)
        return [name for name in policy.order if gate in policy.gates_of(name)]
    return list(policy.order)


def parametrize(metafunc: pytest.Metafunc, settings: Settings, models: Sequence[str]) -> None:
    """Parametrize a gate over the deployments it runs against."""
    path = Path(metafunc.definition.path)
    parameters = [
        pytest.param(
            settings.deployment(model, environment),
            id=f"{environment}-{model}",
            marks=[
                getattr(pytest.mark, environment),
                *([getattr(pytest.mark, gate)] if (gate := gate_name(path)) in ON_DEMAND else []),
            ],
        )
        for model in models or [NO_MODEL]
        for environment in environments_of(
            settings.policy.for_model(model), path, metafunc.definition.iter_markers()
        )
    ]
    metafunc.parametrize("deployment", parameters, indirect=True, scope="session")


def deployment_of(item: pytest.Item) -> Deployment | None:
    """The deployment a gate is about, or None if the item is not a gate."""
    callspec = getattr(item, "callspec", None)
    deployment = callspec.params.get("deployment") if callspec else None
    return deployment if isinstance(deployment, Deployment) else None


def deployment_in_id(node_id: str, settings: Settings, models: Sequence[str]) -> Deployment | None:
    """The deployment that the id of a test names among its parameters, or None."""
    deployments = {
        f"{environment}-{model}": settings.deployment(model, environment)
        for model in models
        for environment in settings.policy.order
    }
    parameters = f"-{parameters_of(node_id)}-"
    # Longest first: one model's name may begin another's.
    named = [name for name in sorted(deployments, key=len)[::-1] if f"-{name}-" in parameters]
    return deployments[named[0]] if named else None


def title_of(item: pytest.Item) -> str:
    """The first line of the docstring of a gate, or of its module; else its name."""
    told_by = (getattr(item, "function", None), getattr(item, "module", None))
    docs = ((getattr(each, "__doc__", None) or "").strip() for each in told_by)
    return next(filter(None, docs), item.name).splitlines()[0]


def in_order(items: list[pytest.Item], policy: Policy) -> list[pytest.Item]:
    """Gates deployment by deployment, cheap ones first as the policy lists them; the rest after."""

    def place(item: pytest.Item) -> tuple[int, str, int]:
        deployment = deployment_of(item)
        if deployment is None:
            return (len(policy.order), "", 0)
        gates = policy.gates_of(deployment.environment)
        gate = gate_name(item.path)
        first = -1 if gate == PREFLIGHT else len(gates)
        return (
            policy.order.index(deployment.environment),
            deployment.model,
            gates.index(gate) if gate in gates else first,
        )

    return sorted(items, key=place)


def without_release(items: Sequence[pytest.Item]) -> list[pytest.Item]:
    """Return the suite's own gates among `items` that need a release, not just a URL."""
    return [
        item
        for item in items
        if is_bundled(item.path) and gate_name(item.path) in _ASK_THE_PLATFORM
    ]


def selection_problem(
    items: Sequence[pytest.Item], *, marker_expression: str, arguments: Sequence[str]
) -> str:
    """Return the error in the selection of gates, with what to type; "" if there is none.

    Each selected gate's environment must have been named, in `-m` or in a test id: production is
    never gated because somebody left something out.
    """
    deployments = [d for item in items if (d := deployment_of(item)) is not None]
    if not deployments:
        return ""
    named = set(re.findall(r"[\w-]+", marker_expression))
    ids = " ".join(argument.partition("[")[2] for argument in arguments)
    silent = sorted(
        {
            d.environment
            for d in deployments
            if d.environment not in named and d.environment not in ids
        }
    )
    model = next((d.model for d in deployments if d.model != NO_MODEL), SOME_MODEL)
    if silent:
        return (
            f"no environment selected: these gates would run against {', '.join(silent)}.\n"
            "Name the environment, for example:  "
            + next_command("pytest", "-m", "staging", "--model", model)
        )
    if any(d.model == NO_MODEL for d in deployments):
        return no_model(deployments[0].environment)
    return ""


def list_gates(models: Sequence[str]) -> str:
    """Return the command line that lists gates, of the first model that the run names."""
    model = next(iter(models), SOME_MODEL)
    return next_command("pytest", "--collect-only", "-q", "-m", "staging", "--model", model)


def nothing_selected(
    policy: Policy, config: pytest.Config, collected: int, models: Sequence[str]
) -> str:
    """Return why a run that asked for gates has none, and what to type."""
    words = marker_words(config)
    known = [*policy.order, *ON_DEMAND]
    expression = config.getoption("markexpr", "")
    if words and not words & set(known):
        meant = did_you_mean(words, known) or f"Environments: {', '.join(policy.order)}."
        return f"no gate was run: -m {expression!r} names no environment; {meant}"
    if keyword := config.getoption("keyword", ""):
        return f"no gate was run: -k {keyword!r} left none of {counted(collected, 'gate')}."
    return (
        f"no gate was run: of {counted(collected, 'gate')} the paths, -m {expression!r} and the "
        f"policy left none.\nSee which there are:  {list_gates(models)}"
    )
