"""Room, quotas and references: what must not pass, and what does."""

import math
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from vllm_rollout.judge import Outcome
from vllm_rollout.judge.preflight_checks import (
    admission_verdict,
    quota_verdict,
    references_verdict,
    room_verdict,
)
from vllm_rollout.model.preflight_facts import (
    Admission,
    Demand,
    GpuRoom,
    NewObjects,
    NodeSpace,
    Quota,
    Reference,
    Refusal,
    Room,
)

GPU = "nvidia.com/gpu"


def demand(pods: int, *, gpus: float = 1, surge: int = 0, **more: object) -> Demand:
    return Demand(
        workload="Deployment m",
        pods=pods,
        surge=surge,
        requests={GPU: gpus, "pods": 1.0},
        **more,  # type: ignore[arg-type]
    )


def node(name: str, free: float, own: float = 0) -> NodeSpace:
    return NodeSpace(node=name, free={GPU: free, "pods": 100}, own={GPU: own, "pods": own})


def test_a_first_install_needs_room_for_its_pods_and_none_for_surge() -> None:
    fits = Room(demands=(demand(4, surge=1),), nodes=(node("a", 2), node("b", 2)))
    verdict = room_verdict(fits)
    assert verdict.passed
    assert (verdict.measured, verdict.limit) == (4, 4)


def test_a_rolling_update_needs_room_for_its_surge_at_once() -> None:
    full = Room(demands=(demand(4, surge=1),), nodes=(node("a", 0, own=4),), existing=4)
    verdict = room_verdict(full)
    assert verdict.outcome is Outcome.FAIL
    assert "1 surge pod of Deployment m finds no node with 1 nvidia.com/gpu" in verdict.reason
    assert "maxSurge 0" in verdict.remedy
    one_free = Room(demands=(demand(4, surge=1),), nodes=(node("a", 1, own=4),), existing=4)
    assert room_verdict(one_free).passed
    no_surge = Room(demands=(demand(4),), nodes=(node("a", 0, own=4),), existing=4)
    assert room_verdict(no_surge).passed


def test_gpus_on_several_nodes_are_no_room_for_one_pod() -> None:
    room = Room(demands=(demand(1, gpus=4),), nodes=(node("a", 2), node("b", 2)))
    verdict = room_verdict(room)
    assert verdict.outcome is Outcome.FAIL
    assert verdict.measured == verdict.limit == 4
    assert "finds no node with 4" in verdict.reason


def test_nodes_that_refuse_the_pods_are_no_room_and_are_named() -> None:
    room = Room(
        demands=(demand(1, refused={"a": "the taint gpu"}),), nodes=(node("a", 8), node("b", 0))
    )
    verdict = room_verdict(room)
    assert verdict.outcome is Outcome.FAIL
    assert "a refuses them: the taint gpu" in verdict.reason


def test_nothing_known_is_never_room() -> None:
    assert room_verdict(Room(demands=())).outcome is Outcome.FAIL
    assert room_verdict(Room(demands=(demand(1),))).outcome is Outcome.INCONCLUSIVE
    nan = NodeSpace(node="a", free={GPU: math.nan, "pods": 1})
    assert room_verdict(Room(demands=(demand(1),), nodes=(nan,))).outcome is Outcome.FAIL
    rules = demand(1, unconsidered="podAntiAffinity")
    unknown = room_verdict(Room(demands=(rules,), nodes=(node("a", 8),)))
    assert unknown.outcome is Outcome.INCONCLUSIVE
    assert "podAntiAffinity" in unknown.reason


def test_a_pool_that_may_be_scaled_to_zero_is_unknown() -> None:
    cpu = NodeSpace(node="cpu", free={"pods": 100})
    for room in (
        Room(demands=(demand(1),), nodes=(cpu,)),
        Room(
            demands=(demand(1, outside=frozenset({"a"}), refused={"a": "the selector"}),),
            nodes=(node("a", 8), cpu),
        ),
    ):
        verdict = room_verdict(room)
        assert verdict.outcome is Outcome.INCONCLUSIVE
        assert "`environments: {development: {preflight: {gpus: off}}}`" in verdict.remedy
    full = room_verdict(Room(demands=(demand(1),), nodes=(node("a", 0), cpu)))
    assert full.outcome is Outcome.FAIL


@given(
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=5),
    frees=st.lists(st.integers(0, 8), max_size=4),
)
def test_what_passes_can_really_be_placed(sizes: list[int], frees: list[int]) -> None:
    demands = tuple(demand(1, gpus=size) for size in sizes)
    nodes = tuple(node(str(number), free) for number, free in enumerate(frees))

    def placeable(left: list[int], room: tuple[int, ...]) -> bool:
        if not left:
            return True
        return any(
            placeable(left[1:], (*room[:at], free - left[0], *room[at + 1 :]))
            for at, free in enumerate(room)
            if free >= left[0]
        )

    possible = placeable(sizes, tuple(frees))
    if room_verdict(Room(demands=demands, nodes=nodes)).passed:
        assert possible
    if len(set(sizes)) == 1:  # exact where pods are alike
        assert room_verdict(Room(demands=demands, nodes=nodes)).passed is possible


def quota(hard: dict[str, float], used: dict[str, float], **own: float) -> Quota:
    return Quota(name="team", hard=hard, used=used, own=own)


def test_a_quota_must_leave_room_for_every_pod_and_the_surge() -> None:
    key = f"requests.{GPU}"
    demands = [demand(2, surge=1)]
    assert quota_verdict(demands, []).passed
    assert quota_verdict(demands, [quota({key: 4}, {key: 2})]).passed
    short = quota_verdict(demands, [quota({key: 4}, {key: 3})])
    assert short.outcome is Outcome.FAIL
    assert f"{key} needs 2, 1 of 4 are left" in short.reason
    own = {key: 2.0, "pods": 2.0}
    rolling = Quota(name="team", hard={key: 4}, used={key: 4}, own=own)
    assert quota_verdict(demands, [rolling]).outcome is Outcome.FAIL
    assert quota_verdict([demand(2)], [rolling]).passed
    pods = quota_verdict(demands, [quota({"pods": 1}, {})])
    assert pods.outcome is Outcome.FAIL


def test_a_quota_on_what_pods_do_not_state_is_a_fail() -> None:
    verdict = quota_verdict([demand(1)], [quota({"limits.cpu": 100}, {})])
    assert verdict.outcome is Outcome.FAIL
    assert "Deployment m does not state it" in verdict.reason
    assert quota_verdict([demand(1)], [quota({"services": 0}, {})]).passed


def test_a_quota_counts_objects_of_the_way_back_too() -> None:
    key = "count/secrets"
    made = NewObjects(counts={key: 10}, notes={key: "8 revisions and 2 of the way back"})
    assert quota_verdict([demand(1)], [quota({key: 30}, {key: 20})], made).passed
    short = quota_verdict([demand(1)], [quota({key: 29}, {key: 20})], made)
    assert short.outcome is Outcome.FAIL
    words = "count/secrets needs 10 more (8 revisions and 2 of the way back), 9 of 29 are left"
    assert words in short.reason
    assert "a Secret for each revision" in short.remedy


def test_what_the_api_server_refuses_or_cannot_be_asked_never_passes() -> None:
    refused = Refusal(what="Deployment m", reason="spec.selector: field is immutable")
    barred = Refusal(what="Service m", reason="ci cannot patch resource", certain=False)
    assert admission_verdict(Admission(asked=2)).passed
    assert admission_verdict(Admission(asked=0)).outcome is Outcome.INCONCLUSIVE
    unknown = admission_verdict(Admission(asked=2, refusals=(barred,)))
    assert unknown.outcome is Outcome.INCONCLUSIVE
    assert "Service m: ci cannot patch resource" in unknown.reason
    both = admission_verdict(Admission(asked=2, refusals=(barred, refused)))
    assert both.outcome is Outcome.FAIL
    assert both.reason == f"the API server refuses {refused}"


def test_a_quota_that_cannot_be_compared_is_not_room() -> None:
    scoped = Quota(name="best", hard={"pods": 9}, used={}, unconsidered="its scopeSelector")
    assert quota_verdict([demand(1)], [scoped]).outcome is Outcome.INCONCLUSIVE


def test_a_claim_of_one_node_is_unknown_for_several_pods() -> None:
    claim = Reference(kind="PersistentVolumeClaim", name="cache", doubt="it is ReadWriteOnce")
    verdict = references_verdict([claim])
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert "preflight: {volumes: off}" in verdict.remedy


def test_every_missing_reference_is_named() -> None:
    assert references_verdict([]).passed
    there = Reference(kind="Secret", name="hf")
    assert "Secret hf" in references_verdict([there]).reason
    gone = Reference(kind="PersistentVolumeClaim", name="cache", problem="it is Pending, not Bound")
    verdict = references_verdict([there, gone])
    assert verdict.outcome is Outcome.FAIL
    assert verdict.reason == "PersistentVolumeClaim cache: it is Pending, not Bound"


def test_gpus_that_other_models_have_are_no_room() -> None:
    held = {"system.qwen-production": 2}
    room = GpuRoom(pool=("0", "1", "2", "3"), held=held, needed=3, replicas=2, surge=1)
    verdict = room_verdict(room)
    assert verdict.outcome is Outcome.FAIL
    assert verdict.reason == (
        "2 replicas need 3 GPUs (1 of them while one is replaced); of 4 (0, 1, 2, 3) it may have "
        "2: system.qwen-production has 2"
    )
    assert "uninstall" in verdict.remedy
    assert room_verdict(replace(room, held={})).outcome is Outcome.PASS
