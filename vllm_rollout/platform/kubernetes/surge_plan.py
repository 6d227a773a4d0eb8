"""Moves from one split of pods to the next; none removes a pod before its replacement is ready.

Helm changes both Deployments of a release at the same moment: pods that are too many leave at
once, those that are missing come up later. One upgrade from 1 canary of 8 to 4 would leave 5
ready pods for as long as a model loads.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Pods:
    """Pods of each track.

    With `handover` the stable ones run the canary's build too, and the canary is being removed.
    """

    stable: int
    canary: int = 0
    handover: bool = False


def surge_plan(
    start: Pods, goal: Pods, *, capacity: int, surge: int, unavailable: int
) -> tuple[Pods, ...]:
    """The splits between `start` and `goal`, the goal included; each is waited for.

    While one is brought about, at most `capacity + surge` pods exist and at least
    `capacity - unavailable` are ready, if as many were when it began. `surge + unavailable` must
    be above 0. Where no canary runs before or afterwards, the Deployment replaces its own pods.
    """
    if surge + unavailable < 1 or min(surge, unavailable) < 0:
        raise ValueError(f"surge {surge} and unavailable {unavailable} let nothing move")
    if not (start.canary or goal.canary):
        return (goal,)
    most, least = capacity + surge, capacity - unavailable
    handover = goal.canary == 0
    at, moves = start, []
    if handover:
        at = Pods(stable=start.stable, canary=start.canary, handover=True)
        moves.append(at)
    while (at.stable, at.canary) != (goal.stable, goal.canary):
        if goal.canary > at.canary:
            stable = min(at.stable, max(goal.stable, least - at.canary))
            canary = max(at.canary, min(goal.canary, most - stable))
        else:
            canary = min(at.canary, max(goal.canary, least - at.stable))
            stable = max(at.stable, min(goal.stable, most - canary))
        following = Pods(stable=stable, canary=canary, handover=handover and canary > 0)
        if following == at:  # more pods than fit were there at first: the rest goes in one move
            following = goal
        moves.append(following)
        at = following
    return tuple(moves)
