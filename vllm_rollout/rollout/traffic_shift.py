"""Users' traffic between a release and its canary: moved there, taken back, and never to a side
that cannot carry it.

The stable release keeps all its replicas for as long as the canary has any traffic, so that all of
it can be taken back at any moment. Weights and replicas to return to are in the journal before the
first of them is changed.
"""

from collections.abc import Mapping

from vllm_rollout.model.deployment import Deployment, newest_served
from vllm_rollout.model.errors import DeployError, RolloutError, UsageError
from vllm_rollout.model.units import format_share, format_value
from vllm_rollout.platform.base import Weights
from vllm_rollout.rollout.context import Context
from vllm_rollout.rollout.journal import JournalEntry, TrafficBefore

Needs = Mapping[Deployment, int]
"""How many ready replicas each side must have."""


class NotCarriedError(DeployError):
    """A side has too few ready replicas, or answers too badly, for the traffic it was to have."""


def traffic_before(context: Context) -> TrafficBefore | None:
    """What a ramp by traffic would set out from; None where the target is not reached by one.

    That is so where the policy does not ask for it, no users are there yet, or nothing serves
    them: then there is no traffic to move.

    Raises:
        UsageError: it is asked for, and cannot begin: nothing divides the traffic, or what is
            there is not the state in which a ramp sets out.
    """
    if not context.policy.ramps_by_traffic(context.target.environment):
        return None
    target, platform = context.target, context.platform
    serving = newest_served(platform.history(target))
    if serving is None:
        return None
    weights = platform.weights(target)
    if not serving.complete:
        raise UsageError(
            f"{target} is half way in a ramp by replicas: {serving.replicas} of {serving.capacity}",
            remedy="Return to a complete revision first: vllm-rollout rollback.",
        )
    if weights.canary_share:
        raise UsageError(
            f"{format_share(weights.canary_share)} of the traffic of {target} goes to a canary "
            "that no rollout of this suite brought up",
            remedy="Give all of it to the release itself first.",
        )
    if platform.history(target.canary):
        raise UsageError(
            f"there is a release {target.canary.release} already, of no rollout of this suite",
            remedy="Remove it first; no traffic goes to it.",
        )
    return TrafficBefore(weights=weights, replicas=serving.capacity)


def ready(context: Context, deployment: Deployment) -> int:
    """How many replicas of a release are ready."""
    return sum(replica.ready for replica in context.platform.replicas(deployment))


def failing(context: Context, deployment: Deployment) -> float:
    """The share of probes that a release's own replicas fail now; 1 where nothing answers."""
    try:
        with context.looks.probe_pods(deployment) as look:
            probes = look().probes
    except RolloutError:
        return 1.0
    return probes.failures / probes.total if probes.healthy and probes.total else 1.0


def shift(context: Context, weights: Weights, *, expect: Weights, needs: Needs) -> None:
    """Divide the target's traffic once both sides have the replicas it takes, and look again.

    Raises:
        NotCarriedError: a side has not, within the deployment's time, or has not any more.
        WeightsChangedError: somebody else has changed the weights, or they do not take effect.
    """
    until = context.clock.monotonic() + context.policy.deploy_timeout_seconds
    while short := _short(context, needs):
        if context.clock.monotonic() >= until:
            raise NotCarriedError(f"no traffic was moved: {short}")
        context.reporter.progress(f"traffic waits: {short}")
        context.clock.sleep(context.policy.watch.interval)
    _divide(context, weights, expect)
    if short := _short(context, needs):
        raise NotCarriedError(f"traffic was moved, and now {short}")


def give_back(context: Context, entry: JournalEntry, *, description: str) -> None:
    """Return the target's release and traffic to where a ramp by traffic set out; the canary stays.

    A release that was changed is brought back first, while the canary has its traffic. Then the
    canary loses as much as the ready replicas of the release can carry, until that is all.

    Raises:
        NotCarriedError: they could not carry all of it in time; the rest stays with the canary.
        DeployError, UsageError: the release or the weights cannot be changed.
    """
    if entry.traffic is None:
        raise AssertionError("no traffic was moved")
    _bring_back(context, entry, description)
    before, clock = entry.traffic, context.clock
    started = clock.monotonic()
    while (now := context.platform.weights(context.target)) != before.weights:
        worse = _answers_worse(context) if now.canary_share else ""
        share = 0.0 if not now.canary_share else _left_to_canary(context, before.replicas)
        if not worse and share == 0:
            return _divide(context, before.weights, None)
        if not worse and share < now.canary_share:
            _divide(context, Weights.of_share(share), None)
        waited = clock.monotonic() - started
        # More replicas take their time to come up; better answers are not waited for as long.
        if waited >= (
            context.policy.triggers.window_seconds
            if worse
            else context.policy.deploy_timeout_seconds
        ):
            share = context.platform.weights(context.target).canary_share
            why = worse or _short(context, {context.target: before.replicas})
            raise NotCarriedError(
                f"{format_share(share)} of the traffic stays with a canary: {why}"
            )
        context.reporter.progress(f"traffic waits to go back: {worse or 'replicas are not ready'}")
        clock.sleep(context.policy.watch.interval)
    return None


def remove_canary(context: Context) -> None:
    """Remove the canary's release. Removing nothing is no error.

    Raises:
        NotCarriedError: it still has traffic, or nothing else is ready.
        DeployError, UnreachableError: the platform does not remove it.
    """
    target = context.target
    if not context.platform.history(target.canary):
        return
    if share := context.platform.weights(target).canary_share:
        raise NotCarriedError(f"the canary stays: it has {format_share(share)} of the traffic")
    if not ready(context, target):
        raise NotCarriedError(f"the canary stays: no replica of {target} is ready")
    context.still_ours()
    context.platform.uninstall(target.canary, timeout=context.policy.deploy_timeout)


def _bring_back(context: Context, entry: JournalEntry, description: str) -> None:
    history = context.platform.history(context.target)
    serving = newest_served(history)
    builds = {revision.number: revision.build for revision in history}
    if entry.before is None or (
        serving is not None and serving.complete and serving.build == builds.get(entry.before)
    ):
        return
    context.platform.rollback(
        context.target,
        entry.before,
        description=description,
        timeout=context.policy.deploy_timeout,
    )


def _divide(context: Context, weights: Weights, expect: Weights | None) -> None:
    context.still_ours()
    context.platform.set_weights(
        context.target, weights, expect=expect, timeout=context.policy.deploy_timeout
    )
    share = format_share(weights.canary_share)
    context.say(f"{share} of the traffic of {context.target} goes to the canary")


def _short(context: Context, needs: Needs) -> str:
    """Which sides have fewer ready replicas than they need, in words; or ""."""
    found = {deployment: ready(context, deployment) for deployment in needs}
    return "; ".join(
        f"{deployment} has {found[deployment]} of {needed} replicas ready"
        for deployment, needed in needs.items()
        if found[deployment] < needed
    )


def _left_to_canary(context: Context, replicas: int) -> float:
    """The share that the release cannot carry and the canary can; a fraction.

    What neither can is the release's: of a canary that has nobody, all is taken at once.
    """
    stable = ready(context, context.target)
    if not stable:
        return 1.0
    return max(0.0, min(replicas - stable, ready(context, context.target.canary))) / replicas


def _answers_worse(context: Context) -> str:
    """Whether the release's own replicas fail more than a trigger allows, and more than the
    canary's: then users are better served where they are. In words; or ""."""
    stable = failing(context, context.target)
    if stable <= context.policy.triggers.error_rate.above:
        return ""
    canary = failing(context, context.target.canary)
    if stable <= canary:
        return ""
    return (
        f"{context.target} fails {format_value(stable, 'ratio')} of the requests, "
        f"the canary {format_value(canary, 'ratio')}"
    )
