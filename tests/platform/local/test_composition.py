"""What a ramp step leaves running beside the new build."""

import pytest

from vllm_rollout.platform.local.composition import Composition, compose


def shares(composition: Composition) -> dict[str, int]:
    return {part.build: part.replicas for part in composition.parts}


def steps(*targets: tuple[str, int, int]) -> dict[str, int]:
    """The composition after applying each (build, replicas, capacity) in turn."""
    composition: Composition | None = None
    for number, (build, replicas, capacity) in enumerate(targets, start=1):
        composition = compose(
            build, number, replicas=replicas, capacity=capacity, before=composition
        )
    assert composition is not None
    return shares(composition)


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        pytest.param([("a", 1, 4)], {"a": 1}, id="a first install has nothing to keep"),
        pytest.param([("a", 1, 4), ("a", 2, 4)], {"a": 2}, id="and ramps by itself"),
        pytest.param(
            [("a", 4, 4), ("b", 1, 4)], {"b": 1, "a": 3}, id="the old build keeps the rest"
        ),
        pytest.param(
            [("a", 4, 4), ("b", 1, 4), ("b", 2, 4)], {"b": 2, "a": 2}, id="the next step takes more"
        ),
        pytest.param(
            [("a", 4, 4), ("b", 1, 4), ("b", 4, 4)], {"b": 4}, id="the last step takes all"
        ),
        pytest.param(
            [("a", 4, 4), ("b", 2, 4), ("c", 1, 4)],
            {"c": 1, "a": 3},
            id="a build that was half way never becomes the base",
        ),
        pytest.param(
            [("a", 4, 4), ("b", 2, 4), ("a", 1, 4)], {"a": 4}, id="back to the base means all of it"
        ),
        pytest.param(
            [("a", 4, 4), ("a", 1, 4)], {"a": 4}, id="a complete build is not shrunk by a ramp"
        ),
        pytest.param([("a", 4, 4), ("a", 2, 2)], {"a": 2}, id="but by a smaller capacity"),
        pytest.param(
            [("a", 2, 2), ("b", 1, 4)], {"b": 1, "a": 3}, id="the rest follows the capacity"
        ),
    ],
)
def test_composition_after_steps(
    targets: list[tuple[str, int, int]], expected: dict[str, int]
) -> None:
    assert steps(*targets) == expected


def test_values_of_the_base_are_found_in_the_revision_it_came_from() -> None:
    first = compose("a", 1, replicas=4, capacity=4, before=None)
    second = compose("b", 2, replicas=1, capacity=4, before=first)
    third = compose("b", 3, replicas=2, capacity=4, before=second)

    assert third.base is not None
    assert (third.head.revision, third.base.revision) == (3, 1)
    assert not third.complete
    assert Composition.from_json(third.to_json()) == third
