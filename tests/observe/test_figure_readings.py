"""Which side of a deployment is read for triggers and gates, and what does not answer."""

import itertools
import threading
from datetime import datetime, timedelta
from typing import Any

import pytest

from vllm_rollout.model.deployment import Deployment
from vllm_rollout.model.errors import UnreachableError
from vllm_rollout.model.live_figures import Figure, FigureName, SideFigures
from vllm_rollout.model.observation import FiguresRead
from vllm_rollout.observe import figure_readings
from vllm_rollout.observe.figure_readings import FigureReader, Readings, utc_now
from vllm_rollout.policy import load_policy

PRODUCTION = Deployment("llama-2-7b", "production")
NO_CANARY = "no canary of production/llama-2-7b was found"


class Fake:
    """Figures whose queue tells the sides apart."""

    sides: tuple[str, ...] = ()
    asked: list[Deployment] = []  # noqa: RUF012 - of the tests

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def read(self, deployment: Deployment, *, window: timedelta, now: datetime) -> Any:
        self.asked.append(deployment)
        if self.sides == ("away",):
            raise UnreachableError("nobody answers", address="http://h")
        return [
            SideFigures(
                environment="production",
                revision=number,
                side=side,
                figures={FigureName.QUEUE: Figure(value=float(number), source="s", at=now)},
            )
            for number, side in enumerate(self.sides)
        ]

    def close(self) -> None: ...


@pytest.mark.parametrize(
    ("sides", "of_release", "of_canary"),
    [
        (("",), 0.0, NO_CANARY),
        (("baseline", "canary"), 1.0, 1.0),
        (
            (),
            "nothing of production/llama-2-7b was found",
            "no canary of production/llama-2-7b was found",
        ),
        (("away",), "nobody answers", "nobody answers"),
    ],
)
def test_while_there_is_a_canary_it_is_the_one_that_is_read(
    monkeypatch: pytest.MonkeyPatch,
    sides: tuple[str, ...],
    of_release: float | str,
    of_canary: float | str,
) -> None:
    monkeypatch.setattr(figure_readings, "LiveFigures", Fake)
    monkeypatch.setattr(Fake, "sides", sides)
    for deployment, expected in ((PRODUCTION, of_release), (PRODUCTION.canary, of_canary)):
        found = FigureReader(load_policy(None), None, deployment).read()  # type: ignore[arg-type]
        queue = found.figures.get(FigureName.QUEUE)
        assert (queue.value if queue else found.problem) == expected
        assert Fake.asked[-1] == PRODUCTION


def test_readings_go_on_while_nobody_asks_and_past_an_answer_that_is_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(figure_readings, "LiveFigures", Fake)
    third, closed = threading.Event(), threading.Event()
    answers = itertools.count(1)

    def read(self: FigureReader) -> FiguresRead:
        number = next(answers)
        if number == 2:
            raise KeyError("an answer that is none")
        if number > 3:
            third.set()
        return FiguresRead(at=utc_now(), problem=str(number))

    monkeypatch.setattr(FigureReader, "read", read)
    monkeypatch.setattr(Fake, "close", lambda _self: closed.set())
    platform: Any = None
    reader = FigureReader(load_policy(None), platform, PRODUCTION)
    with Readings(reader, every=0.001) as readings:
        found = [*readings.new(20)]
        assert third.wait(20)
        found += readings.new(0)
    assert [each.problem for each in found][:2] == ["1", "3"]
    assert closed.wait(20)
    with Readings(None, every=0.001) as readings:
        assert readings.new(20) == ()
