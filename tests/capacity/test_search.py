"""Whatever happens around a search, it ends with what was shown until then."""

from collections.abc import Callable

from vllm_rollout.capacity.model import Capacity, NextProbe, Probe, SearchConfig, StopReason
from vllm_rollout.capacity.rate_probe import Slos
from vllm_rollout.capacity.search import Steps, search
from vllm_rollout.model.errors import UnreachableError
from vllm_rollout.model.verdict import Outcome

GOAL = SearchConfig(
    slos=Slos(error_limit=0.05),
    start_per_second=10,
    max_per_second=10,
    precision=0.1,
    confidence=0.95,
    most_probes=8,
    limit_seconds=1,
    probe_seconds=5,
    proof_seconds=60,
)


def conducted(
    send: Callable[[NextProbe], Probe], settled: str = "", changed: str = ""
) -> tuple[Capacity, list[Probe]]:
    probes: list[Probe] = []
    steps = Steps(
        send=send, settle=lambda: settled, changed=lambda: changed, on_probe=lambda _: None
    )
    return search(GOAL, steps, probes), probes


def passes(ask: NextProbe) -> Probe:
    return Probe(
        per_second=ask.per_second,
        aim=ask.aim,
        outcome=Outcome.PASS,
        holds=True,
        seconds=60,
        reason="",
    )


def test_a_server_that_does_not_recover_and_a_build_that_changes_end_it() -> None:
    found, probes = conducted(passes, settled="not idle again after 30 s: connection refused")
    assert (found.ending, len(probes)) == (StopReason.NOT_RECOVERED, 1)
    assert "refused" in found.detail
    found, probes = conducted(passes, changed="revision 3 became 4")
    assert (found.ending, found.detail) == (StopReason.CHANGED, "revision 3 became 4")


def test_ctrl_c_and_a_load_that_cannot_be_sent_keep_what_is_known() -> None:
    for error, ending in (
        (KeyboardInterrupt(), StopReason.INTERRUPTED),
        (
            UnreachableError("the load generator could not be used", address="x"),
            StopReason.UNMEASURED,
        ),
    ):

        def send(_: NextProbe, error: BaseException = error) -> Probe:
            raise error

        found, probes = conducted(send)
        assert found.ending is ending
        assert (found.lower, probes) == (0.0, [])
