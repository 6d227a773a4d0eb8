"""Conducts a search: asks the judge what to send, sends it, and ends whatever happens."""

from collections.abc import Callable
from dataclasses import dataclass

from vllm_rollout.capacity.judge import conclude, next_step
from vllm_rollout.capacity.model import Capacity, NextProbe, Probe, SearchConfig, StopReason
from vllm_rollout.model.errors import RolloutError


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """Actions of a search.

    `send` sends a load and judges it. `settle` waits until the server is idle again and says why
    it is not, or "". `changed` says what has become of the build that is searched, or "".
    """

    send: Callable[[NextProbe], Probe]
    settle: Callable[[], str]
    changed: Callable[[], str]
    on_probe: Callable[[Probe], None]


def search(goal: SearchConfig, steps: Steps, probes: list[Probe]) -> Capacity:
    """Search until the judge has seen enough; `probes` grows with each load.

    Ctrl-C ends it with what is known by then, and so does whatever keeps it from going on.
    """
    try:
        return _search(goal, steps, probes)
    except RolloutError as error:
        return conclude(goal, probes, StopReason.UNMEASURED, str(error))
    except KeyboardInterrupt:
        return conclude(goal, probes, StopReason.INTERRUPTED)


def _search(goal: SearchConfig, steps: Steps, probes: list[Probe]) -> Capacity:
    while not isinstance(step := next_step(goal, probes), Capacity):
        probe = steps.send(step)
        probes.append(probe)
        steps.on_probe(probe)
        if problem := steps.settle():
            return conclude(goal, probes, StopReason.NOT_RECOVERED, problem)
        if change := steps.changed():
            return conclude(goal, probes, StopReason.CHANGED, change)
    return step
