"""The effective policy as the YAML that `load_policy` reads back to the same policy."""

from collections.abc import Mapping
from typing import Any

import yaml

from vllm_rollout.policy.models import Policy
from vllm_rollout.policy.yaml_loader import add_scalars


class _Off:
    """Stands for a block that is left out."""


_OFF = _Off()


class _Dumper(yaml.SafeDumper):
    """Safe dumper that knows `off` and writes no aliases."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - PyYAML's signature
        return True


# Text that either YAML would take for something else is quoted.
add_scalars(_Dumper)


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    # Line breaks of YAML 1.1 that it would write as they are, and read back as spaces.
    breaks = any(character in text for character in "\x85\u2028\u2029")
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"' if breaks else None)


_Dumper.add_representer(str, _represent_text)
_Dumper.add_representer(
    _Off, lambda dumper, _: dumper.represent_scalar("tag:yaml.org,2002:bool", "off")
)


def dump_policy(policy: Policy) -> str:
    """The whole policy as YAML, units as people write them, inheritance written out.

    A model's block holds only what differs from the rest of the policy.
    """
    tree = _written(policy.as_written())
    tree["models"] = {name: _difference(tree, block) for name, block in tree["models"].items()}
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def _written(value: Any) -> Any:
    """The value with `off` for everything left out."""
    if isinstance(value, Mapping):
        return {key: _OFF if inner is None else _written(inner) for key, inner in value.items()}
    return [_written(item) for item in value] if isinstance(value, list) else value


def _difference(whole: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of `own` that is not in `whole`, mappings key by key."""
    found: dict[str, Any] = {}
    for key, value in own.items():
        other = whole.get(key)
        if isinstance(value, Mapping) and isinstance(other, Mapping):
            inner = _difference(other, value)
            if inner:
                found[key] = inner
        elif key not in whole or value != other:
            found[key] = value
    return found
