"""Laws and dials are read as people write them, and refused with what would be right."""

import random
import statistics

import pytest

from vllm_rollout.simulator.dials import DialError, Dials
from vllm_rollout.simulator.distributions import DISTRIBUTIONS, parse_distribution


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_half_of_a_laws_draws_are_below_its_median(name: str) -> None:
    law = parse_distribution(f"{name}(median=0.2)")
    rng = random.Random(1)
    draws = [law.draw(rng) for _ in range(20_000)]
    assert statistics.median(draws) == pytest.approx(0.2, rel=0.03)
    assert min(draws) >= 0


def test_a_laws_parameters_shape_its_tail() -> None:
    rng = random.Random(1)
    bimodal = parse_distribution("bimodal(median=1, slow_share=0.1, slow_factor=7)")
    draws = [bimodal.draw(rng) for _ in range(10_000)]
    assert set(draws) == {1.0, 7.0}
    assert draws.count(7.0) / len(draws) == pytest.approx(0.1, abs=0.01)
    pareto = parse_distribution("pareto(median=1, alpha=2)")
    # P(T > t) = (scale / t) ** 2 with scale = 1 / 2 ** 0.5
    beyond = sum(pareto.draw(rng) > 5 for _ in range(20_000)) / 20_000
    assert beyond == pytest.approx(0.02, abs=0.004)


@pytest.mark.parametrize(
    "text", ["0.05", "lognormal(median=0.2, sigma=0.5)", "pareto(median=1, alpha=3)"]
)
def test_a_law_is_written_as_it_is_read(text: str) -> None:
    assert str(parse_distribution(text)) == text
    assert parse_distribution(parse_distribution(text)) == parse_distribution(text)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("fast", "'fast' is not a latency distribution"),
        ("weibull(median=1)", "lognormal"),
        ("lognormal(sigma=1)", "needs median"),
        ("lognormal(median=1, alpha=2)", "takes median, sigma, not 'alpha=2'"),
        ("lognormal(median=x)", "'x'"),
        ("-1", "median must be a finite number, 0 or more"),
        ("nan", "median must be a finite number"),
        ("inf", "median must be a finite number"),
        ("pareto(median=1, alpha=0)", "alpha must be 0.1 or more"),
        ("bimodal(median=1, slow_share=0.7)", "slow_share must be 0.5 or less"),
    ],
)
def test_a_wrong_law_says_what_is_wrong(text: str, told: str) -> None:
    with pytest.raises(ValueError, match=r".") as error:
        parse_distribution(text)
    assert told in str(error.value)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"eror_rate": 0.5}, "eror_rate: no such dial"),
        ({"error_rate": 1.5}, "error_rate: Input should be less than or equal to 1"),
        ({"error_rate": float("nan")}, "error_rate"),
        ({"max_num_seqs": 0}, "max_num_seqs"),
        ({"error_status": 200}, "error_status"),
        ({"ttft_seconds": True}, "ttft_seconds"),
        ({"stall_seconds": 10, "stall_every_seconds": 10}, "stall_seconds must be less"),
        ({"hang": "perhaps"}, "hang"),
        ({"seed": "x", "crash_after": -1}, "; crash_after"),
    ],
)
def test_a_wrong_dial_is_named(changes: dict[str, object], told: str) -> None:
    with pytest.raises(DialError) as error:
        Dials().turned(changes)
    assert told in str(error.value)


def test_values_may_be_text_and_the_rest_stays() -> None:
    turned = Dials(seed=9).turned(
        {"error_rate": "0.2", "hang": "true", "ttft_seconds": "bimodal(median=0.1)", "eos_after": 4}
    )
    assert (turned.error_rate, turned.hang, turned.eos_after, turned.seed) == (0.2, True, 4, 9)
    assert (
        turned.model_dump()["ttft_seconds"]
        == "bimodal(median=0.1, slow_share=0.05, slow_factor=10)"
    )
    assert Dials().turned(turned.model_dump()) == turned
