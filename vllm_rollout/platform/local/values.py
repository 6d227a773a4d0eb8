"""The values of a local release: the command of one replica, checked before anything starts.

    {"command": ["vllm", "serve", "/models/{model}", "--port", "{port}"],
     "env": {"HF_HUB_OFFLINE": "1"}, "secrets": ["VLLM_API_KEY"], "model_revision": "v2",
     "gpus": 1}

A secret is named here and never written: its value is taken from the environment of the command
that started the release's router.
"""

import re
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vllm_rollout.model.errors import UsageError

_PLACEHOLDER = re.compile(r"\{([A-Za-z_]+)\}")
_PLACEHOLDERS = ("port", "model", "python", "gpu", "slot")
_SECRET_WORDS = frozenset(
    {"KEY", "APIKEY", "TOKEN", "SECRET", "PASSWORD", "PASSWD", "CREDENTIAL", "CREDENTIALS"}
)
_SECRET_OPTION = re.compile(r"--(api[-_]?key|password|token)(=|$)")

_PARALLEL = (
    ("--tensor-parallel-size", "-tp", "--tp", "--tp-size"),
    ("--pipeline-parallel-size", "-pp", "--pp", "--pp-size"),
    ("--data-parallel-size", "-dp", "--dp", "--dp-size"),
)
"""Options of vLLM and SGLang whose product is the number of GPUs that one server takes."""
_VISIBLE_GPUS = "CUDA_VISIBLE_DEVICES"
# By default CUDA numbers the fastest GPU 0; nvidia-smi numbers them by their bus.
_NUMBERED_AS_LISTED = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


@dataclass(frozen=True, slots=True)
class Seat:
    """A replica's own share of the machine: a small number, and the GPUs given to it.

    They are None where none are given to anybody.
    """

    slot: int = 0
    gpus: tuple[str, ...] | None = None


class LocalValues(BaseModel):
    """Values that start one replica."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    command: list[str] = Field(min_length=1)
    env: dict[str, str] = Field(default_factory=dict)
    secrets: list[str] = Field(default_factory=list)
    model_revision: str | None = None

    gpus: int | None = Field(default=None, ge=0)

    def to_json(self) -> dict[str, Any]:
        """As plain JSON types; `gpus` only where it is given, as before there was such a key."""
        return self.model_dump(exclude={"gpus"} if self.gpus is None else None)

    @property
    def gpus_each(self) -> int:
        """GPUs of one replica: `gpus`, else by the parallel sizes that the command states.

        Raises:
            UsageError: such a size is no number.
        """
        return prod(map(self._size, _PARALLEL)) if self.gpus is None else self.gpus

    def _size(self, names: tuple[str, ...]) -> int:
        # One word of it may be a whole command: ["bash", "-c", "vllm serve …"].
        words = " ".join(self.command).replace("=", " ").split()
        places = [at for at, word in enumerate(words) if word.replace("_", "-") in names]
        if not places:
            return 1
        stated = words[places[-1] + 1] if places[-1] + 1 < len(words) else ""
        if not stated.isdecimal():
            raise UsageError(
                f"values of the release: command: {words[places[-1]]} {stated} does not say how "
                "many GPUs one replica takes",
                remedy="Add `gpus: N` to the values.",
            )
        return int(stated)

    @property
    def names_gpus(self) -> bool:
        """True if command or environment have `{gpu}` in them."""
        return any("{gpu}" in part for part in (*self.command, *self.env.values()))

    def argv(self, *, port: int, model: str, seat: Seat = Seat()) -> list[str]:
        """The command with its placeholders filled in, element by element."""
        known = _known(port, model, seat)
        return [_PLACEHOLDER.sub(lambda m: known[m.group(1)], part) for part in self.command]

    def variables(self, *, port: int, model: str, seat: Seat = Seat()) -> dict[str, str]:
        """`env` with its placeholders filled in; other braces stay. A replica sees the GPUs that
        are given to it and no others, unless `env` itself says which."""
        known = _known(port, model, seat)
        filled = {
            name: _PLACEHOLDER.sub(lambda m: known.get(m.group(1), m.group(0)), text)
            for name, text in self.env.items()
        }
        if seat.gpus is not None and _VISIBLE_GPUS not in filled:
            filled = {**_NUMBERED_AS_LISTED, **filled, _VISIBLE_GPUS: known["gpu"]}
        return filled

    def environment(self, inherited: Mapping[str, str]) -> dict[str, str]:
        """`inherited`, and of its secrets only those that are listed.

        Raises:
            UsageError: a listed secret is missing from `inherited`; the message names it.
        """
        missing = [name for name in self.secrets if not inherited.get(name)]
        if missing:
            raise UsageError(
                f"the environment has no {', '.join(missing)}, which the values list under secrets",
                remedy="Export it in the shell that deploys; its value is stored nowhere.",
            )
        return {
            name: value
            for name, value in inherited.items()
            if name in self.secrets or not is_secret(name)
        }


def _known(port: int, model: str, seat: Seat) -> dict[str, str]:
    return {
        "port": str(port),
        "model": model,
        "python": sys.executable,
        "gpu": ",".join(seat.gpus or ()),
        "slot": str(seat.slot),
    }


def is_secret(variable: str) -> bool:
    """Return True if an environment variable's name says that it holds a secret."""
    return not _SECRET_WORDS.isdisjoint(variable.upper().split("_"))


def parse_values(values: Mapping[str, Any]) -> LocalValues:
    """Check the values of a release.

    Raises:
        UsageError: an unknown key or placeholder, a wrong type, no `{port}`, a command that is
            not there, or a secret written out.
    """
    try:
        parsed = LocalValues.model_validate(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(step) for step in first["loc"])
        raise UsageError(
            f"values of the release: {where or 'values'}: {first['msg']}",
            remedy=f"Known keys: {', '.join(LocalValues.model_fields)}; "
            'for example command: ["vllm", "serve", "/models/{model}", "--port", "{port}"].',
        ) from None
    _check_placeholders(parsed)
    _check_secrets(parsed)
    program = parsed.argv(port=0, model="")[0]
    if shutil.which(program) is None:
        raise UsageError(
            f"values of the release: command: {program} is not a program that can be run",
            remedy="Install it or write its full path; {python} stands for this Python.",
        )
    return parsed


def _check_placeholders(values: LocalValues) -> None:
    used = {name for part in values.command for name in _PLACEHOLDER.findall(part)}
    for name in sorted(used.difference(_PLACEHOLDERS)):
        raise UsageError(
            f"values of the release: command: unknown placeholder {{{name}}}",
            remedy="Known: " + ", ".join(f"{{{known}}}" for known in _PLACEHOLDERS) + ".",
        )
    if "port" not in used:
        raise UsageError(
            "values of the release: command: no {port}, so replicas would share one port",
            remedy='Add for example "--port", "{port}".',
        )


def _check_secrets(values: LocalValues) -> None:
    written = [name for name in values.env if is_secret(name)]
    written += [part.split("=")[0] for part in values.command if _SECRET_OPTION.match(part)]
    if written:
        raise UsageError(
            f"values of the release: {written[0]} would put a secret into the state file"
            " and the process list",
            remedy='List its environment variable instead, for example secrets: ["VLLM_API_KEY"], '
            "and export it.",
        )
