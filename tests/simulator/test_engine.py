"""As many sequences run as may, the rest wait in order, and every token comes at its time."""

import random
from typing import Any

import pytest

from vllm_rollout.simulator.dials import Dials
from vllm_rollout.simulator.distributions import Constant, Lognormal
from vllm_rollout.simulator.engine import Engine, EngineDeadError, OverloadedError, Sequence


class Log:
    """A listener and an observer that write down what they are told."""

    def __init__(self) -> None:
        self.tokens: list[tuple[str, int]] = []
        self.ended: list[str] = []
        self.deaths = 0
        self.rejections = 0
        self.iterations: list[tuple[int, int]] = []
        self.gaps: list[float] = []
        self.names: dict[Sequence, str] = {}

    def on_token(self, sequence: Sequence, *, last: bool) -> None:
        self.tokens.append((self.names[sequence], sequence.produced))
        if last:
            self.ended.append(self.names[sequence])

    def on_death(self) -> None:
        self.deaths += 1

    def first_token(self, sequence: Sequence) -> None:
        assert sequence.produced == 1

    def next_token(self, gap_seconds: float) -> None:
        self.gaps.append(gap_seconds)

    def iteration(self, prompt_tokens: int, generated_tokens: int) -> None:
        self.iterations.append((prompt_tokens, generated_tokens))

    def finished(self, sequence: Sequence) -> None:
        assert sequence.produced == sequence.length

    def rejected(self) -> None:
        self.rejections += 1


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def make(log: Log, manual_loop: Any) -> Any:
    """Makes a sequence: one second to the first token and between tokens, three tokens."""

    def sequence(name: str, **fields: Any) -> Sequence:
        made = Sequence(
            **{
                "index": 0,
                "listener": log,
                "prompt_tokens": 5,
                "max_tokens": 3,
                "length": 3,
                "finish_reason": "length",
                "rng": random.Random(1),
                "ttft": Constant(1),
                "inter_token": Constant(1),
                "arrived": manual_loop.now,
                **fields,
            }
        )
        log.names[made] = name
        return made

    return sequence


def test_two_of_four_run_and_the_rest_wait_their_turn(
    make: Any, log: Log, manual_loop: Any
) -> None:
    engine = Engine(manual_loop, Dials(max_num_seqs=2), log)
    for name in "abcd":
        engine.submit([make(name)])
    assert (len(engine.running), len(engine.waiting)) == (2, 2)
    manual_loop.advance(2.5)
    assert {log.names[one] for one in engine.running} == {"a", "b"}
    manual_loop.advance(1)
    assert log.ended == ["a", "b"]
    assert {log.names[one] for one in engine.running} == {"c", "d"}
    manual_loop.advance(3)
    assert log.ended == ["a", "b", "c", "d"]
    assert log.gaps == pytest.approx([1.0] * 8, abs=0.003)
    assert (sum(prompts for prompts, _ in log.iterations), len(log.tokens)) == (20, 12)


def test_the_target_leaves_out_the_wait(make: Any, log: Log, manual_loop: Any) -> None:
    engine = Engine(manual_loop, Dials(max_num_seqs=1), log)
    drawn = {"ttft": Lognormal(1, 0.5), "inter_token": Lognormal(1, 0.5)}
    first, second = (make(name, rng=random.Random(3), **drawn) for name in "ab")
    engine.submit([first])
    engine.submit([second])
    manual_loop.advance(60)
    assert first.target_seconds == second.target_seconds
    assert first.last_token - first.started == pytest.approx(first.target_seconds, abs=0.003)
    assert second.last_token - second.arrived > 1.5 * second.target_seconds


def test_a_full_queue_turns_a_request_away_whole(make: Any, log: Log, manual_loop: Any) -> None:
    engine = Engine(manual_loop, Dials(max_num_seqs=1, max_num_queued_reqs=2), log)
    for name in "abc":
        engine.submit([make(name)])
    with pytest.raises(OverloadedError):
        engine.submit([make("d"), make("e")])
    assert (len(engine.waiting), log.rejections) == (2, 1)


def test_an_abort_frees_the_place_at_once(make: Any, log: Log, manual_loop: Any) -> None:
    engine = Engine(manual_loop, Dials(max_num_seqs=1), log)
    running, waiting, next_one = make("running"), make("waiting"), make("next")
    for sequence in (running, waiting, next_one):
        engine.submit([sequence])
    engine.abort([waiting])
    engine.abort([running])
    engine.abort([running])
    assert list(engine.running) == [next_one]
    manual_loop.advance(10)
    assert log.tokens == [("next", 1), ("next", 2), ("next", 3)]


def test_a_hung_engine_takes_requests_and_gives_nothing(
    make: Any, log: Log, manual_loop: Any
) -> None:
    engine = Engine(manual_loop, Dials(hang=True), log)
    engine.submit([make("a")])
    manual_loop.advance(3600)
    assert (len(engine.running), log.tokens) == (1, [])
    engine.pause("stall", on=True)
    engine.turn(Dials())
    manual_loop.advance(3600)
    assert log.tokens == []
    engine.pause("stall", on=False)
    manual_loop.advance(1.5)
    assert log.tokens == [("a", 1)]


def test_death_tells_everyone_and_takes_nothing_more(make: Any, log: Log, manual_loop: Any) -> None:
    engine = Engine(manual_loop, Dials(max_num_seqs=1), log)
    engine.submit([make("a")])
    engine.submit([make("b")])
    engine.turn(Dials(max_num_seqs=1, dead=True))
    assert log.deaths == 1  # once for each listener
    with pytest.raises(EngineDeadError):
        engine.submit([make("c")])
    engine.turn(Dials(max_num_seqs=1))
    engine.submit([make("d")])
    manual_loop.advance(10)
    assert log.ended == ["d"]


def test_turning_max_num_seqs_up_lets_the_waiting_in(make: Any, log: Log, manual_loop: Any) -> None:
    engine = Engine(manual_loop, Dials(max_num_seqs=1), log)
    for name in "abc":
        engine.submit([make(name)])
    engine.turn(Dials(max_num_seqs=3))
    assert (len(engine.running), len(engine.waiting)) == (3, 0)
