"""Preflight checks of what a rollout needs before it begins: room on nodes, quotas, claims."""

from collections.abc import Mapping, Sequence

from vllm_rollout.model.preflight_facts import (
    FREE_A_GPU,
    Admission,
    Demand,
    GpuRoom,
    NewObjects,
    NodeSpace,
    Quota,
    Reference,
    Room,
    quota_use,
    switch_off,
)
from vllm_rollout.model.units import counted
from vllm_rollout.model.verdict import Outcome, Verdict, VerdictMethod, check

_MAKE_ROOM = (
    "Scale down GPU workloads that can wait, add GPU nodes, or wait for room; a release with "
    "maxSurge 0 and maxUnavailable 1 needs no room beyond its own pods. Where an autoscaler adds "
    f"nodes for pods that wait, switch this check off with {switch_off('gpus')}."
)
_NO_OBJECTS = NewObjects()
_ONE_BILLIONTH = 1e-9
"""Quantities are sums of fractions (cores); so much more than there is counts as equal."""


def room_verdict(room: Room | GpuRoom) -> Verdict:
    """Pass if every pod of the rollout finds a node, the surge of a rolling update included.

    Pods are placed largest first, each on the first node that takes it and has all it asks for:
    exact where all pods are alike, and otherwise never too hopeful. The release's own pods give
    their place back one by one, so its last pods may take it, but its first new ones may not.

    Inconclusive where no node is there that such pods could ever run on, as in a pool that an
    autoscaler has scaled to zero: what it would add is unknown.

    `measured` is how many of the scarcest thing (GPUs, where pods ask for any) the accepting nodes
    have for this release, `limit` how many it takes.
    """
    if isinstance(room, GpuRoom):
        return check(room.fits, str(room), remedy=FREE_A_GPU)
    # A rolling update surges only where there is something to roll.
    new = [demand for demand in room.demands for _ in range(demand.surge) if room.existing]
    whole = [demand for demand in room.demands for _ in range(demand.pods)] + new
    surge_left = _unplaced(new, room.nodes, with_own=False)
    left = _unplaced(whole, room.nodes, with_own=True)
    short = surge_left + left
    resource = _scarce(room.demands)
    needed = sum(demand.requests.get(resource, 0) for demand in whole)
    free, own = _available(room, resource)
    need = f"{counted(len(whole), 'pod')} ({len(new)} of them surge) need{'s'[: len(whole) == 1]} "
    need += f"{needed:g} {resource}"
    words = [need, f"accepting nodes have {free:g} free", f"the release's own pods hold {own:g}"]
    if short:
        number, which = len(surge_left or left), "surge pod" if surge_left else "pod"
        words.append(
            f"{counted(number, which)} of {short[0].workload} find{'s'[: number == 1]} no node "
            f"with {_amounts(short[0])}"
        )
        words += [f"{node} refuses them: {why}" for node, why in short[0].refused.items()]
    ignored = sorted({demand.unconsidered for demand in room.demands if demand.unconsidered})
    fits = bool(whole) and not short
    absent = bool(short) and all(_no_pool(each, room.nodes) for each in short)
    verdict = Verdict(
        outcome=Outcome.PASS if fits else Outcome.FAIL,
        measured=free + own,
        limit=needed,
        unit="count",
        method=VerdictMethod.COMPARED,
        n=len(room.nodes),
        reason="; ".join(words),
        remedy="" if fits else _MAKE_ROOM,
    )
    if absent:
        return verdict.inconclusive_because(
            f"{verdict.reason}; no node that is there has what they ask for: an autoscaler may "
            "have scaled that pool to zero, or the resource or the selector is misspelled",
            "Look yourself whether an autoscaler adds such nodes for pods that wait, and switch "
            f"this check off with {switch_off('gpus')}.",
        )
    if fits and ignored:
        return verdict.inconclusive_because(
            f"{verdict.reason}; not considered: {', '.join(ignored)}",
            "Look yourself whether these rules leave room, and switch this check off with "
            f"{switch_off('gpus')}.",
        )
    return verdict


def quota_verdict(
    demands: Sequence[Demand], quotas: Sequence[Quota], objects: NewObjects = _NO_OBJECTS
) -> Verdict:
    """Pass if each quota leaves room for all pods of the rollout, its surge included, and for the
    `objects` that it makes, those of its way back too.

    A quota on a resource that pods do not state is a fail too: the API server refuses such pods.
    """
    if not quotas:
        return check(True, "the namespace has no ResourceQuota")
    unknown = [f"{quota.name} ({quota.unconsidered})" for quota in quotas if quota.unconsidered]
    problems: list[str] = []
    words: list[str] = []
    short_of_objects = False
    for quota in (each for each in quotas if not each.unconsidered):
        for key in sorted(quota.hard):
            needed, unstated = _needed(demands, key, rolling=bool(quota.own.get("pods")))
            if unstated:
                problems.append(f"{quota.name} limits {key}, and {unstated} does not state it")
            more = ""
            if needed is None and key in objects.counts:
                needed, note = objects.counts[key], objects.notes.get(key)
                more = f" more ({note})" if note else " more"
            if needed is None:
                continue
            left = quota.hard[key] - quota.used.get(key, 0) + quota.own.get(key, 0)
            text = f"{quota.name}: {key} needs {needed:g}{more}, "
            text += f"{left:g} of {quota.hard[key]:g} are left"
            fits = needed <= left + _ONE_BILLIONTH
            short_of_objects |= bool(more) and not fits
            (words if fits else problems).append(text)
    if problems:
        return check(
            False,
            "; ".join(problems),
            remedy="Raise the quota, or ask for less: fewer replicas, a smaller surge."
            + (" Helm keeps a Secret for each revision." if short_of_objects else ""),
        )
    if unknown:
        return check(
            None,
            f"cannot decide whether these apply: {', '.join(unknown)}",
            remedy=f"Look at them yourself, and switch this check off with {switch_off('quota')}.",
        )
    return check(True, "; ".join(words) or "no quota counts what these pods use")


def references_verdict(references: Sequence[Reference]) -> Verdict:
    """Pass if each claim, Secret and ConfigMap that pods need is there; none needed is a pass."""
    bad = [f"{each.kind} {each.name}: {each.problem}" for each in references if each.problem]
    if bad:
        return check(
            False,
            "; ".join(bad),
            remedy="Create what is missing in the release's namespace; pods that need it never "
            "start.",
        )
    names = ", ".join(f"{each.kind} {each.name}" for each in references)
    if doubts := [f"{each.kind} {each.name}: {each.doubt}" for each in references if each.doubt]:
        return check(
            None,
            "; ".join(doubts),
            remedy="Use a claim that many nodes can mount (ReadWriteMany, ReadOnlyMany), or one "
            "for each pod. Where the pods are kept on one node, switch this check off with "
            f"{switch_off('volumes')}.",
        )
    return check(True, f"there: {names}" if names else "the pods need no claim and no Secret")


def admission_verdict(admission: Admission) -> Verdict:
    """Pass if the API server would admit each object, and each pod that is made of one.

    What it could not be asked is unknown, whatever the reason.
    """
    certain = [str(each) for each in admission.refusals if each.certain]
    if certain:
        return check(
            False,
            f"the API server refuses {'; '.join(certain)}",
            remedy="Correct the chart, its values or the policy that is named. A field that is "
            "immutable takes another name, or removing the object first.",
        )
    if admission.refusals or not admission.asked:
        unknown = "; ".join(map(str, admission.refusals)) or "the chart makes nothing"
        return check(
            None,
            f"the API server could not be asked: {unknown}",
            remedy="Ask with the rights of the Role `promote` of this version's chart "
            "rollout-roles, and let webhooks answer dry runs (sideEffects: None); or switch this "
            f"check off with {switch_off('admission')}.",
        )
    return check(True, f"the API server admits all {admission.asked} objects and pods")


def _no_pool(demand: Demand, nodes: Sequence[NodeSpace]) -> bool:
    """Return True if none of the nodes that the pods select has the devices that they ask for."""
    devices = [name for name, amount in demand.requests.items() if "/" in name and amount]
    selected = [node for node in nodes if node.node not in demand.outside]
    return not any(all(name in node.free for name in devices) for node in selected)


def _unplaced(
    pods: Sequence[Demand], nodes: Sequence[NodeSpace], *, with_own: bool
) -> list[Demand]:
    """The pods that find no place, when each in turn takes the first that fits."""
    spaces = {node.node: dict(node.free) for node in nodes}
    if with_own:
        for node in nodes:
            for name, amount in node.own.items():
                spaces[node.node][name] = spaces[node.node].get(name, 0) + amount
    left = []
    resource = _scarce(pods)
    for pod in sorted(pods, key=lambda each: each.requests.get(resource, 0), reverse=True):
        taken = next(
            (s for name, s in spaces.items() if name not in pod.refused and _fits(pod, s)), None
        )
        if taken is None:
            left.append(pod)
            continue
        for name, amount in pod.requests.items():
            taken[name] = taken.get(name, 0) - amount
    return left


def _fits(pod: Demand, space: Mapping[str, float]) -> bool:
    return all(
        amount <= space.get(name, 0) + _ONE_BILLIONTH
        for name, amount in pod.requests.items()
        if amount
    )


def _scarce(demands: Sequence[Demand]) -> str:
    """Return the resource that runs out first: the device that pods ask for, else pod slots."""
    asked = {name for demand in demands for name, amount in demand.requests.items() if amount}
    return next((name for name in sorted(asked) if "/" in name), "pods")


def _available(room: Room, resource: str) -> tuple[float, float]:
    """(free, held by the release's own pods) on the nodes that take any of its pods."""
    taking = [
        node for node in room.nodes if any(node.node not in each.refused for each in room.demands)
    ]
    free = sum(max(0.0, node.free.get(resource, 0)) for node in taking)
    return free, sum(node.own.get(resource, 0) for node in taking)


def _amounts(demand: Demand) -> str:
    return ", ".join(
        f"{amount:g} {name}" for name, amount in sorted(demand.requests.items()) if name != "pods"
    )


def _needed(demands: Sequence[Demand], key: str, *, rolling: bool) -> tuple[float | None, str]:
    """Return what the rollout uses of `key`, and a workload that does not state it.

    None where the key counts something else than what pods use.
    """
    total, counted, unstated = 0.0, False, ""
    for demand in demands:
        use = quota_use(demand.requests, demand.limits)
        if key in use:
            counted = True
            total += use[key] * (demand.pods + (demand.surge if rolling else 0))
        elif key.removeprefix("requests.").removeprefix("limits.") in ("cpu", "memory"):
            unstated = demand.workload
    return (total if counted else None), unstated
