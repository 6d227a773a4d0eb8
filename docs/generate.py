"""Generates the reference parts of the documentation from the code: `make docs`.

A page says where: what is between `<!-- generated: NAME ARGUMENTS -->` and `<!-- end -->` is made
by the function of `BLOCKS` with that name. `tests/test_documents.py` holds the pages to it.
"""

import inspect
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import fields
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

from vllm_rollout import gates_api
from vllm_rollout.cli.examples import EXAMPLES
from vllm_rollout.cli.main import _COMMANDS, _imported
from vllm_rollout.cli.options import Choice
from vllm_rollout.model.errors import ExitCode
from vllm_rollout.model.units import DURATION_PATTERN, LIMIT_PATTERN, RATE_PATTERN, SHARE_PATTERN
from vllm_rollout.platform.reader import ReleaseReader
from vllm_rollout.platform.writer import ReleaseWriter
from vllm_rollout.policy import Rules, load_policy
from vllm_rollout.policy.fields import MAY_BE_OFF
from vllm_rollout.policy.schema import attribute_texts, blocks_by_name, policy_schema
from vllm_rollout.pytest_plugin.gate_options import OPTIONS, WITHOUT_VARIABLE
from vllm_rollout.resources import DEFAULT_POLICY
from vllm_rollout.variables import variable_of

ROOT = Path(__file__).parents[1]
Schema = dict[str, Any]

_WRITTEN = {
    DURATION_PATTERN: "duration",
    LIMIT_PATTERN: "duration, or `at least` one",
    SHARE_PATTERN: "share",
    RATE_PATTERN: "rate",
}
_LONGEST_DEFAULT = 70
_NOWHERE = object()


def pages() -> list[Path]:
    """Every page that may have generated parts."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def generated(text: str) -> str:
    """The page's text with its generated parts made again."""
    return re.sub(
        r"(<!-- generated: ([\w-]+)(.*?) -->\n).*?(<!-- end -->)",
        lambda part: f"{part[1]}\n{BLOCKS[part[2]](*part[3].split())}\n{part[4]}",
        text,
        flags=re.DOTALL,
    )


def _table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    cells = [list(header)]
    cells += [["---"] * len(cells[0]), *([_cell(each) for each in row] for row in rows)]
    return "".join(f"| {' | '.join(row)} |\n".replace("|  |", "| |") for row in cells)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


# The policy: its schema has what may be written and what it means, default.yaml the numbers.


def policy_table(*keys: str) -> str:
    """A table of the keys at and below `keys`; `environments.ENV` and `models.MODEL` are any."""
    rows = [row for key in keys for row in _rows(key, _schema_at(key))]
    return _table(("key", "written as", "meaning", "default"), rows)


def policy_keys() -> Iterator[str]:
    """Every key that a policy may have, as the tables name them."""
    for key in _whole_schema()["properties"]:
        start = {"environments": "environments.ENV", "models": "models.MODEL"}.get(key, key)
        yield from (name for name, *_ in _rows(start, _schema_at(start)))


@cache
def _defaults() -> Schema:
    return json.loads(json.dumps(load_policy(DEFAULT_POLICY).as_written()))


@cache
def _whole_schema() -> Schema:
    return policy_schema()


def _schema_at(key: str) -> Schema:
    part: Schema = _whole_schema()
    for name in key.split("."):
        block = _block(part)
        part = (
            block["additionalProperties"] if name in {"ENV", "MODEL"} else block["properties"][name]
        )
    return part


def _block(part: Schema) -> Schema:
    """The part without `off`, a list's item, and the block that it refers to."""
    for each in part.get("anyOf", ()):
        if each != MAY_BE_OFF:
            return _block(each)
    if "items" in part:
        return _block(part["items"])
    if "$ref" in part:
        return _whole_schema()["$defs"][_name(part)]
    return part


def _name(part: Schema) -> str:
    return str(part["$ref"]).rpartition("/")[2]


def _rows(key: str, part: Schema, default: str = "") -> Iterator[tuple[str, ...]]:
    block = _block(part)
    if (key.count(".") and not key.endswith((".ENV", ".MODEL"))) or "." not in key:
        meaning = part.get("description") or block.get("description", "")
        shown = key.removeprefix("environments.ENV.")
        yield f"`{shown}`", _written(part), meaning.removesuffix("."), _default_of(key) or default
    inside = "[]" if _is_list(part) else ""
    for name, inner in block.get("properties", {}).items():
        if key == "models.MODEL" and name in Rules.model_fields:
            continue
        within = f"{key}{inside}.{name}"
        yield from _rows(within, inner, _of_the_class(block, name))


def _is_list(part: Schema) -> bool:
    return "items" in part or any(_is_list(each) for each in part.get("anyOf", ()))


def _written(part: Schema) -> str:
    if "anyOf" in part:
        may_be_off = MAY_BE_OFF in part["anyOf"]
        others = [_written(each) for each in part["anyOf"] if each != MAY_BE_OFF]
        return " or ".join(others) + (", or `off`" if may_be_off else "")
    if "$ref" in part:
        return "block"
    if "const" in part:
        return f"`{part['const']}`"
    if "type" not in part and "enum" not in part:
        return "text"
    if values := part.get("enum"):
        words = ["on", "off"] if False in values else values
        return ", ".join(f"`{word}`" for word in words[:-1]) + f" or `{words[-1]}`"
    if part.get("pattern") in _WRITTEN:
        return _WRITTEN[part["pattern"]]
    if part["type"] == "integer":
        least = part.get("minimum", part.get("exclusiveMinimum", 0) + 1)
        return "whole number" if least == 1 else f"whole number from {least}"
    if part["type"] == "array":
        return "list" if "$ref" in part["items"] else f"list: {_written(part['items'])}"
    if part["type"] == "string" and "format" in part:
        return str(part["format"])
    if "[0-5][0-9]" in part.get("pattern", ""):
        return "time, or `24:00`" if "24:00" in part["pattern"] else "time"
    kinds = part["type"] if isinstance(part["type"], list) else [part["type"]]
    known = {"string": "text", "object": "mapping", "integer": "whole number"}
    return " or ".join(known.get(kind, kind) for kind in kinds)


def _default_of(key: str) -> str:
    if key.startswith("models.MODEL"):
        return ""
    if not key.startswith("environments.ENV"):
        return _shown(_value_at(_defaults(), key), key)
    policy = _defaults()
    name = key.removeprefix("environments.ENV.")
    by_value = [
        (_shown(_value_at(policy["environments"][each], name), key), each)
        for each in policy["order"]
    ]
    runs = [(value, [each for _, each in run]) for value, run in groupby(by_value, lambda v: v[0])]
    inherited = name.split(".")[0] in {"gates", "load", "preflight"}
    return ", ".join(
        value
        if len(runs) == 1
        else f"{value} from {names[0]} on"
        if inherited
        else f"{' and '.join(names)} {value}"
        for value, names in runs
        if value and (value != "`off`" or len(runs) == 1)
    )


def _value_at(value: Any, key: str) -> Any:
    for name in key.split("."):
        if not isinstance(value, dict) or name not in value:
            return _NOWHERE
        value = value[name]
    return value


def _shown(value: Any, key: str) -> str:
    if value is _NOWHERE:
        return ""
    if value is None:
        return "`off`"
    if isinstance(value, bool):
        return "`on`" if value else "`off`"
    if isinstance(value, dict) and "properties" in _block(_schema_at(key)):
        return "`on`" if "anyOf" in _schema_at(key) else ""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return f"`{text}`" if len(text) <= _LONGEST_DEFAULT else "see default.yaml"


def _of_the_class(block: Schema, key: str) -> str:
    """The default of a key that default.yaml does not have, as its class has it."""
    named = _whole_schema()["$defs"]
    (owner,) = (each for name, each in blocks_by_name().items() if named.get(name) is block)
    (field,) = (f for name, f in owner.model_fields.items() if (f.alias or name) == key)
    if field.is_required() or field.default is None:
        return ""
    if isinstance(field.default, bool):
        return "`on`" if field.default else "`off`"
    return f"`{field.default}`" if isinstance(field.default, str | int | float) else "all"


# The command lines.


def command_sections() -> str:
    """A section for each command: what it does, examples, the options of its own."""
    return "\n".join(_section(name, command) for name, command in each_command())


def each_command() -> Iterator[tuple[str, Any]]:
    """Every command by the words that name it, those of `policy` one by one."""
    for name in _COMMANDS:
        command = _imported(name)
        inner = getattr(command, "commands", {"": command})
        yield from ((f"{name} {each}".strip(), inner[each]) for each in inner)


def _section(name: str, command: Any) -> str:
    program = "" if name == "gate-and-promote" else "vllm-rollout "
    words = [each.metavar or each.name.upper() for each in command.params if not _is_option(each)]
    about_releases = {each.name for each in command.params} >= _SHARED
    left_out = _SHARED if about_releases else set()
    own = [each for each in command.params if _is_option(each) and each.name not in left_out]
    rest = "[the options of every command about releases](#options-that-commands-share)"
    parts = [
        f"### {name}\n",
        f"`{' '.join([program + name, *words])}`\n",
        inspect.cleandoc(command.help) + "\n",
        "```bash\n" + "".join(f"{each}\n" for each in EXAMPLES.get(name, ())) + "```\n",
        _options_table(own) if own else "",
        f"And {rest}.\n" if about_releases else "",
    ]
    return "\n".join(part for part in parts if part)


def shared_options() -> str:
    """A table of the options of every command about releases."""
    return _options_table(each for each in _imported("status").params if each.name in _SHARED)


_SHARED = {field.name for field in fields(Choice)}


def options_of(command: str) -> str:
    """A table of one command's options."""
    return _options_table(each for each in _imported(command).params if _is_option(each))


def _is_option(each: Any) -> bool:
    return bool(each.opts[0].startswith("-"))


def _options_table(options: Iterable[Any]) -> str:
    return _table(("option", "meaning", "default"), map(_option_row, options))


def _option_row(option: Any) -> tuple[str, ...]:
    first, *others = sorted(option.opts, key=len, reverse=True)
    value = "" if option.is_flag else f" {option.metavar or 'VALUE'}"
    names = ", ".join([f"`{first}{value}`", *(f"`{each}`" for each in others)])
    text, _ = _without_default(option.help)
    return names, text + ("; required" if option.required else ""), default_of(option)


def default_of(option: Any) -> str:
    """What an option's help says that it is without it; empty where there is nothing."""
    _, default = _without_default(option.help)
    if default or option.is_flag:
        return default
    shown = option.show_default if isinstance(option.show_default, str) else option.default
    return "" if shown in (None, "") else f"`{shown}`"


def _without_default(text: str) -> tuple[str, str]:
    """The help of an option, and the default that it ends with."""
    found = re.fullmatch(r"(.*?),? \(default: (.*)\)(.*)", " ".join(text.split()))
    return (found[1] + found[3], found[2]) if found else (text, "")


def pytest_options() -> str:
    """A table of the options of pytest where gates are run."""
    rows = []
    for name, about in OPTIONS.items():
        text, default = _without_default(about["help"])
        value = f" {about['metavar']}" if "metavar" in about else ""
        rows.append((f"`{name}{value}`", text, default))
    return _table(("option", "meaning", "default"), rows)


def variables() -> str:
    """A table of the variables that stand for options."""
    names = [name.removeprefix("--") for name in OPTIONS]
    rows = [
        (f"`{variable_of(name)}`", f"`--{name}`" + _VALUES.get(name, ""))
        for name in names
        if name not in WITHOUT_VARIABLE
    ]
    return _table(("variable", "option"), rows)


_VALUES = {
    "model": " of pytest; several with commas. Alone it asks for no gate: name an environment "
    "(`-m`) or a gate, too",
    "load-in-cluster": ": `on` or `off`",
}


def exit_codes() -> str:
    """A table of the exit codes of the command lines."""
    texts = attribute_texts(ExitCode)
    return _table(("code", "meaning"), ((str(code.value), texts[code.name]) for code in ExitCode))


# Names that other programs rely on.


def platform_protocol() -> str:
    """A table of what a platform does: what reads releases, then what changes them."""
    rows = []
    for owner, does in ((ReleaseReader, "reads"), (ReleaseWriter, "changes")):
        for name, member in vars(owner).items():
            if not name.startswith("_") and (does == "reads" or name != "store"):
                rows.append((f"`{name}`", does, _first_paragraph(member)))
    return _table(("name", "", "what it is or does"), rows)


def gates_api_names() -> str:
    """A table of the public names for gates of a team's own."""
    rows = [
        (f"`{name}`", _first_paragraph(getattr(gates_api, name)))
        for name in sorted(gates_api.__all__, key=str.lower)
    ]
    return _table(("name", "what it is or does"), rows)


def _first_paragraph(named: Any) -> str:
    return inspect.cleandoc(named.__doc__ or "").partition("\n\n")[0].removesuffix(".")


BLOCKS = {
    "policy": policy_table,
    "commands": command_sections,
    "shared-options": shared_options,
    "options-of": options_of,
    "pytest-options": pytest_options,
    "variables": variables,
    "exit-codes": exit_codes,
    "platform-protocol": platform_protocol,
    "gates-api": gates_api_names,
}


if __name__ == "__main__":
    for page in pages():
        page.write_text(generated(page.read_text(encoding="utf-8")), encoding="utf-8")
