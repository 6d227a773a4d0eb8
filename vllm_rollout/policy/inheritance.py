"""Inheritance between environments and models."""

from dataclasses import replace

from vllm_rollout.policy.models import Rules
from vllm_rollout.policy.validation_errors import Problem, did_you_mean
from vllm_rollout.policy.yaml_nodes import Node, merge, with_children

_INHERITED = ("gates", "load", "preflight")


def expand(root: Node) -> tuple[Node, list[Problem]]:
    """The policy's tree with every environment and every model written out in full.

    A model gets the whole policy with its own block merged over it; then an environment gets
    preflight, gates and load of the one before it in `order`, its own block merged over them. What
    a policy says of an environment by name so outweighs what a model's block says of an earlier
    one.
    What is no mapping is left as it is, for validation to refuse.

    Returns:
        The expanded tree, and where `order` and `environments` disagree.
    """
    order = root.children.get("order")
    problems = _without_block(root)
    models = root.children.get("models")
    if models is not None and isinstance(models.value, dict):
        shared = {name: root.children.get(name) for name in Rules.model_fields}
        whole = {
            name: _inherit(_over(shared, block), order, problems)
            for name, block in models.children.items()
        }
        root = with_children(root, {"models": with_children(models, whole)})
    return _inherit(root, order, problems), problems


def _over(shared: dict[str, Node | None], block: Node) -> Node:
    """A model's block merged over what all models share."""
    if not isinstance(block.value, dict) or block.off:
        return block
    return with_children(
        block, {name: merge(shared.get(name), block.children.get(name)) for name in shared}
    )


def _names(order: Node | None) -> list[str]:
    """Return the names that `order` lists; empty when it is no list of text."""
    if order is None or not isinstance(order.value, list):
        return []
    return [name.value for name in order.value if isinstance(name.value, str)]


def _without_block(root: Node) -> list[Problem]:
    """The names in `order` for which there is no environment."""
    order, environments = root.children.get("order"), root.children.get("environments")
    blocks = list(environments.children) if environments else []
    if order is None or not blocks or not isinstance(order.value, list):
        return []
    return [
        Problem(
            name.place,
            name.key,
            f"environments has no block {name.value!r}{did_you_mean(name.value, blocks)}",
        )
        for name in order.value
        if isinstance(name.value, str) and name.value not in blocks
    ]


def _inherit(rules: Node, order: Node | None, problems: list[Problem]) -> Node:
    environments = rules.children.get("environments")
    if environments is None or not isinstance(environments.value, dict) or environments.off:
        return rules
    written = environments.children
    names = _names(order) or list(written)
    whole: dict[str, Node] = {}
    carried: dict[str, Node | None] = dict.fromkeys(_INHERITED)
    for name in names:
        block = written.get(name)
        if block is not None and isinstance(block.value, dict):
            carried = {key: merge(carried[key], block.children.get(key)) for key in _INHERITED}
            block = with_children(block, carried)
        if block is not None:
            whole[name] = block
    for name, block in written.items():
        if order is not None and name not in whole:
            problems.append(_left_out(name, block, order, names))
    return with_children(rules, {"environments": replace(environments, value=whole)})


def _left_out(name: str, block: Node, order: Node, names: list[str]) -> Problem:
    """The problem of an environment that `order` lacks, at the one of the two written last."""
    if order.place.rank > block.place.rank:
        return Problem(order.place, order.key, f"leaves out {name!r}, which environments has")
    hint = did_you_mean(name, names)
    return Problem(
        block.key_place,
        block.key,
        f"order does not list this environment{hint} (order: {', '.join(names)})",
    )
