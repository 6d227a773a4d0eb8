"""The next load begins only when the server answers as it did before the first."""

import pytest

from vllm_rollout.capacity.settling import Settling
from vllm_rollout.model.errors import UnreachableError
from vllm_rollout.model.load_result import RequestOutcome
from vllm_rollout.observe.client import Inference


class Server:
    """Answers in the given seconds; None is an error, an exception is raised. The last repeats."""

    def __init__(self, *answers: "float | Exception | None") -> None:
        self.answers = list(answers)
        self.seconds = 0.0

    def ask(self) -> Inference:
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            self.seconds += 1
            raise answer
        self.seconds += answer or 1.0
        outcome = RequestOutcome.OK if answer is not None else RequestOutcome.HTTP_ERROR
        return Inference(outcome=outcome, status=200, seconds=answer or 1.0)

    def settling(self) -> Settling:
        def sleep(seconds: float) -> None:
            self.seconds += seconds

        return Settling(self.ask, most_seconds=30, now=lambda: self.seconds, sleep=sleep)


REFUSED = UnreachableError("connection refused", address="http://x")


def test_a_backlog_is_waited_for_until_three_answers_in_a_row_are_quick() -> None:
    server = Server(0.2, 0.2, 0.2, 5.0, 3.0, 0.3, 1.0, 0.2, 0.2, 0.2, 9.0)
    settling = server.settling()
    assert settling.begin() == ""
    assert settling.wait() == ""
    assert server.answers == [9.0]


@pytest.mark.parametrize(
    ("after", "why"),
    [(4.0, "takes 4 s, and took 0.2 s before"), (None, "http_error"), (REFUSED, "refused")],
)
def test_a_server_that_does_not_recover_is_waited_for_only_so_long(
    after: "float | Exception | None", why: str
) -> None:
    server = Server(0.2, 0.2, 0.2, after)
    settling = server.settling()
    settling.begin()
    said = settling.wait()
    assert said.startswith("not idle again after 30 s")
    assert why in said
    assert server.seconds < 40


def test_a_server_that_does_not_answer_alone_is_not_searched() -> None:
    assert "http_error" in Server(0.2, None, 0.2).settling().begin()
    with pytest.raises(UnreachableError):
        Server(REFUSED).settling().begin()
