"""What an HTTPRoute says of a release's traffic, and what is written into it."""

from typing import Any

import pytest

from vllm_rollout.model.deployment import Deployment
from vllm_rollout.model.errors import UsageError
from vllm_rollout.platform.base import Weights
from vllm_rollout.platform.kubernetes.http_routes import divided_rules, not_in_force, read_weights

PRODUCTION = Deployment("llama", "production")
STABLE, CANARY = "llama-production", "llama-production-canary"


def to(name: str, weight: int | None = None, **more: Any) -> dict[str, Any]:
    weighed = {} if weight is None else {"weight": weight}
    return {"name": name, "port": 8000, **weighed, **more}


def route(*rules: list[dict[str, Any]], **status: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": "llama", "generation": 3},
        "spec": {"rules": [{"backendRefs": references} for references in rules]},
        "status": status,
    }


def condition(kind: str, status: str = "True", generation: int = 3) -> dict[str, Any]:
    return {"type": kind, "status": status, "observedGeneration": generation, "message": "why"}


@pytest.mark.parametrize(
    ("rules", "weights"),
    [
        ([[to(STABLE)]], Weights(stable=1)),
        ([[to(STABLE, 100), to(CANARY, 0)]], Weights(stable=100, canary=0)),
        ([[to(CANARY, 3), to(STABLE, 1, kind="Service", group="")]], Weights(stable=1, canary=3)),
        ([[to("other", 5)], [to(STABLE, 2)], [to(STABLE, 2)]], Weights(stable=2)),
        ([[to(STABLE, 2, namespace="system")], []], Weights(stable=2)),
    ],
)
def test_the_weights_of_a_release(rules: list[Any], weights: Weights) -> None:
    assert read_weights(route(*rules), PRODUCTION) == weights


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ([], "sends it no traffic"),
        ([[to("other")]], "sends it no traffic"),
        ([[to(STABLE, kind="InferencePool", group="inference.networking.k8s.io")]], "no traffic"),
        ([[to(STABLE, namespace="elsewhere")]], "sends it no traffic"),
        ([[to(STABLE, 1)], [to(STABLE, 2)]], "has rules that divide it differently"),
        ([[to(STABLE), to("other")]], "among llama-production, other"),
        ([[to(STABLE), to(STABLE)]], "among llama-production, llama-production"),
        ([[to(CANARY)]], "among llama-production-canary"),
    ],
)
def test_what_divides_otherwise_is_refused(rules: list[Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        read_weights(route(*rules), PRODUCTION)


def test_only_the_weights_of_the_two_are_written() -> None:
    filters = [{"type": "RequestHeaderModifier"}]
    other = {"backendRefs": [to("other", 5)]}
    found = route([to("other", 5)], [to(STABLE, filters=filters)])

    rules = divided_rules(found, PRODUCTION, Weights(stable=3, canary=1))

    assert rules == [
        other,
        {"backendRefs": [to(STABLE, 3, filters=filters), to(CANARY, 1, filters=filters)]},
    ]
    back = {**found, "spec": {"rules": rules}}
    assert divided_rules(back, PRODUCTION, Weights(stable=1)) == [
        other,
        {"backendRefs": [to(STABLE, 1, filters=filters)]},
    ]


@pytest.mark.parametrize(
    ("parents", "said"),
    [
        ([[condition("Accepted"), condition("ResolvedRefs")]], ""),
        ([], "no gateway has accepted it"),
        ([[condition("Accepted")]], "has not processed it yet"),
        ([[condition("Accepted", generation=2), condition("ResolvedRefs")]], "not processed it"),
        ([[condition("Accepted"), condition("ResolvedRefs", "False")]], "ResolvedRefs is False"),
        (
            [[condition("Accepted"), condition("ResolvedRefs")], [condition("Accepted", "False")]],
            "Accepted is False: why",
        ),
    ],
)
def test_weights_hold_when_every_gateway_has_accepted_the_route_as_it_is(
    parents: list[Any], said: str
) -> None:
    found = route([to(STABLE)], parents=[{"conditions": conditions} for conditions in parents])
    trouble = not_in_force(found)
    assert said in trouble
    assert bool(said) is bool(trouble)
