"""Moves from one split of pods to the next; none removes a pod before its replacement is ready.

Helm changes both Deployments of a release at the same moment. Pods that are too many leave, those
that are missing come up later: one upgrade from 1 canary of 8 to 4 would leave 5 ready pods for as
long as a model loads. And those that are missing may be made before the others have begun to leave,
so a move either adds pods or removes some.
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
            stable, canary = _step(at.stable, at.canary, goal.stable, goal.canary, most, least)
        else:
            canary, stable = _step(at.canary, at.stable, goal.canary, goal.stable, most, least)
        following = Pods(stable=stable, canary=canary, handover=handover and canary > 0)
        if following == at:  # more pods than fit were there at first: the rest goes in one move
            following = goal
        moves.append(following)
        at = following
    return tuple(moves)


def _step(
    leaving: int, coming: int, leaving_goal: int, coming_goal: int, most: int, least: int
) -> tuple[int, int]:
    """Return the pods that leave and those that come in their place, after the next move."""
    left = min(leaving, max(leaving_goal, least - coming))
    if left < leaving:
        return left, coming
    return left, max(coming, min(coming_goal, most - left))
