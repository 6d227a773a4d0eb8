"""What pods ask for, and which of their rules are looked at."""

from vllm_rollout.platform.kubernetes.nodes import (
    limits_of,
    not_selected,
    refusal,
    requests_of,
    unconsidered,
    with_defaults,
)


def test_limit_ranges_state_what_containers_do_not() -> None:
    limits = {"default": {"cpu": "2", "memory": "4Gi"}, "defaultRequest": {"cpu": "1"}}
    ranges = [
        {"spec": {"limits": [{"type": "Pod", "max": {"cpu": "9"}}]}},
        {"spec": {"limits": [{"type": "Container", **limits}]}},
    ]
    pod = {
        "containers": [{"name": "a"}, {"name": "b", "resources": {"limits": {"cpu": "4"}}}],
        "initContainers": [{"name": "first", "resources": {"requests": {"cpu": "8"}}}],
    }

    filled = with_defaults(pod, ranges)

    assert limits_of(filled) == {"cpu": 6, "memory": 2 * 4 * 2**30}
    # A limit that is stated is a request too, whatever the default.
    assert requests_of(filled)["cpu"] == max(1 + 4, 8)
    assert limits_of(with_defaults(pod, [])) == {"cpu": 4}


def test_claims_of_devices_are_named_as_not_considered() -> None:
    assert unconsidered({"containers": []}) == ""
    assert unconsidered({"resourceClaims": [{"name": "gpu"}]}) == "resourceClaims"


def test_a_node_that_is_not_selected_is_no_node_that_refuses() -> None:
    tainted = {"metadata": {"name": "a"}, "spec": {"taints": [{"key": "x", "effect": "NoExecute"}]}}
    assert not_selected(tainted, {}) == ""
    assert refusal(tainted, {}) == "the taint x"
    elsewhere = {"nodeSelector": {"pool": "gpu"}}
    assert (
        not_selected(tainted, elsewhere) == refusal(tainted, elsewhere) == "the selector pool=gpu"
    )
