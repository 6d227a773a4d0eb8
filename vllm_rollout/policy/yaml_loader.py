"""YAML to tree: a safe subset of YAML 1.2, with every problem of a text reported at once.

Plain scalars follow YAML 1.2's core schema (16:00 is text, not a number of minutes), to which
`on` and `off` are added as booleans. Nothing is constructed but text, numbers, booleans, lists
and mappings; the size of text and tree is bounded.
"""

import re
from dataclasses import dataclass, field

import yaml
from yaml.resolver import BaseResolver

from vllm_rollout.policy.validation_errors import Problem
from vllm_rollout.policy.yaml_nodes import Node, Place, Scalar, dotted
from vllm_rollout.yaml_file import DEEPEST, MOST_NODES

_TOO_DEEP = f"is nested more than {DEEPEST} deep"
_TAG = "tag:yaml.org,2002:"
_TRUE = {"true", "on", "yes"}
_PATTERNS = {
    "bool": re.compile("true|True|false|False|on|On|off|Off|yes|Yes|no|No"),
    "int": re.compile("[-+]?[0-9]{1,18}"),
    "float": re.compile(
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.inf|\.nan"
    ),
    "null": re.compile("~|null|Null|"),
}
_FIRST = {
    "bool": [*"tTfFoOyYnN"],
    "int": [*"-+0123456789"],
    "float": [*"-+.0123456789"],
    "null": ["", *"~nN"],
}


def add_scalars(parser_or_dumper: type[BaseResolver]) -> None:
    """Make PyYAML take the scalars above for what they are, besides those it knows."""
    for kind, pattern in _PATTERNS.items():
        whole = re.compile(f"^(?:{pattern.pattern})$")
        parser_or_dumper.add_implicit_resolver(_TAG + kind, whole, _FIRST[kind])


class _Loader(yaml.SafeLoader):
    """PyYAML's parser with the scalars above in place of YAML 1.1's."""


_Loader.yaml_implicit_resolvers = {}
add_scalars(_Loader)


def read_yaml(text: str, place: Place, *, key: str = "") -> tuple[Node | None, list[Problem]]:
    """The tree of a YAML text, or None when it is empty or cannot be read.

    Args:
        text: the YAML.
        place: source and rank of the nodes; a line of 0 means that positions in the text mean
            nothing to the reader (an option's value) and every node gets `place` itself.
        key: the dotted key that the text is the value of.

    Returns:
        The tree without what was wrong, and everything that was wrong.
    """
    try:
        root = yaml.compose(text, Loader=_Loader)
    except yaml.reader.ReaderError as error:
        before = text[: error.position]
        line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
        where = Place(place.source, line, column, place.rank) if place.line else place
        return None, [Problem(where, key, f"holds a character YAML does not allow: {error.reason}")]
    except yaml.MarkedYAMLError as error:
        where = _at(error.problem_mark, place)
        return None, [Problem(where, key, f"is not YAML: {error.problem or error.context}")]
    except RecursionError:
        return None, [Problem(place, key, _TOO_DEEP)]
    if root is None:
        return None, []
    reader = _Reader(place)
    node = reader.node(root, key, _at(root.start_mark, place), 0)
    return node, reader.problems


def _at(mark: yaml.Mark | None, place: Place) -> Place:
    if mark is None or not place.line:
        return place
    return Place(place.source, mark.line + 1, mark.column + 1, place.rank)


@dataclass
class _Reader:
    place: Place
    problems: list[Problem] = field(default_factory=list)
    nodes: int = 0

    def node(self, source: yaml.Node, key: str, key_place: Place, depth: int) -> Node | None:
        """The node of one YAML node, or None when something is wrong with it (and is noted)."""
        place = _at(source.start_mark, self.place)
        self.nodes += 1
        if self.nodes > MOST_NODES:
            # Aliases can make a small text endless.
            if self.nodes == MOST_NODES + 1:
                self._wrong(place, key, f"holds more than {MOST_NODES:,} values")
            return None
        if depth > DEEPEST:
            # An alias can hold itself.
            self._wrong(place, key, _TOO_DEEP)
            return None
        value: Scalar | dict[str, Node] | list[Node]
        if isinstance(source, yaml.MappingNode):
            value = self._mapping(source, key, depth)
        elif isinstance(source, yaml.SequenceNode):
            items = (
                self.node(item, dotted(key, index), _at(item.start_mark, self.place), depth + 1)
                for index, item in enumerate(source.value)
            )
            value = [item for item in items if item is not None]
        else:
            try:
                value = _scalar(source)
            except ValueError as error:
                self._wrong(place, key, str(error))
                return None
        return Node(value, place, key_place, key)

    def _mapping(self, source: yaml.MappingNode, key: str, depth: int) -> dict[str, Node]:
        found: dict[str, Node] = {}
        lines: dict[str, Place] = {}
        for name, inner in source.value:
            place = _at(name.start_mark, self.place)
            if not isinstance(name, yaml.ScalarNode):
                self._wrong(place, key, "a key must be plain text")
                continue
            inner_key = dotted(key, name.value)
            if name.value in lines:
                self._wrong(place, inner_key, f"is there twice; first at {lines[name.value]}")
                continue
            lines[name.value] = place
            node = self.node(inner, inner_key, place, depth + 1)
            if node is not None:
                found[name.value] = node
        return found

    def _wrong(self, place: Place, key: str, text: str) -> None:
        self.problems.append(Problem(place, key, text))


def _scalar(source: yaml.Node) -> Scalar:
    """The value of a scalar.

    Raises:
        ValueError: an empty value (it could mean the default as well as nothing), or one that its
            tag does not fit.
    """
    text: str = source.value
    kind = source.tag.removeprefix(_TAG)
    if kind == "null" and not text:
        raise ValueError("has no value: write one, or remove the key")
    pattern = _PATTERNS.get(kind)
    if pattern is None or not pattern.fullmatch(text):
        if kind == "str":
            return text
        raise ValueError(f"{text!r} cannot be read as {source.tag}")
    if kind == "bool":
        return text.lower() in _TRUE
    if kind == "int":
        return int(text)
    if kind == "float":
        return float(text.replace(".inf", "inf").replace(".nan", "nan"))
    return None
