"""Field types of the policy: units as people write them, and rules that teach.

A field is given as text (`15m`, `0.1%`, `10/s`) and holds SI units and fractions.
"""

import re
import string
from collections.abc import Callable, Hashable, Iterable
from datetime import UTC, timedelta, tzinfo
from functools import partial
from itertools import pairwise
from typing import Annotated, Any, TypeVar
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    PlainSerializer,
    SerializerFunctionWrapHandler,
    WithJsonSchema,
    model_serializer,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import PydanticCustomError, core_schema

from vllm_rollout.model.deployment import checked_name, checked_served_name
from vllm_rollout.model.errors import UsageError
from vllm_rollout.model.text import public_address
from vllm_rollout.model.units import (
    DURATION_PATTERN,
    LIMIT_PATTERN,
    RATE_PATTERN,
    SHARE_PATTERN,
    format_duration,
    format_limit,
    format_rate,
    format_share,
    parse_duration,
    parse_limit,
    parse_rate,
    parse_share,
)

BROKEN_RULE = "policy_rule"
# In the JSON Schema: to an editor that follows YAML 1.2, an unquoted on or off is text.
_ON_OR_OFF = [False, True, "off", "on"]
MAY_BE_OFF: JsonSchemaValue = {"enum": [*_ON_OR_OFF, None]}
_T = TypeVar("_T")
_H = TypeVar("_H", bound=Hashable)


def broken_rule(text: str, *keys: str) -> PydanticCustomError:
    """The error of a rule about several keys.

    `keys` are dotted names below the model that raises it; the report points at the one of them
    that was written last (a rollout.yaml before the defaults).
    """
    return PydanticCustomError(BROKEN_RULE, "{text}", {"text": text, "keys": keys})


class Block(BaseModel):
    """A mapping of the policy: frozen, and a key it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_serializer(mode="wrap")
    def _without_what_was_not_written(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leaves keys out that can only be left out: `off` is not a value of theirs."""
        written: dict[str, Any] = write(self)
        for name, field in type(self).model_fields.items():
            off = any(isinstance(each, MayBeOff) for each in field.metadata)
            if getattr(self, name) is None and not off:
                written.pop(field.alias or name, None)
        return written


def _duration(value: object) -> timedelta:
    return value if isinstance(value, timedelta) else parse_duration(value)


def _limit(value: object) -> timedelta:
    return value if isinstance(value, timedelta) else parse_limit(value)


def _above_zero(value: _T) -> _T:
    if not value:  # the parsers refuse what is negative
        raise broken_rule("must be more than zero")
    return value


def _confidence(value: float) -> float:
    if not 0.5 < value < 1:
        raise broken_rule(
            f"must be above 50% and below 100%, for example 95%, not {format_share(value)}"
        )
    return value


def _short(value: float) -> int | float:
    return int(value) if float(value).is_integer() else value  # a default may be an int


Duration = Annotated[
    timedelta,
    BeforeValidator(_duration),
    PlainSerializer(format_duration, return_type=str),
    WithJsonSchema(
        {"type": "string", "pattern": DURATION_PATTERN, "examples": ["500ms", "15m", "1h30m"]}
    ),
]
"""Zero or longer."""

Span = Annotated[Duration, AfterValidator(_above_zero)]
"""A duration longer than zero."""

TimeLimit = Annotated[
    timedelta,
    BeforeValidator(_limit),
    PlainSerializer(format_limit, return_type=str),
    WithJsonSchema(
        {"type": "string", "pattern": LIMIT_PATTERN, "examples": ["15m", "at least 15m"]}
    ),
    AfterValidator(_above_zero),
]
"""A duration longer than zero; `at least 15m` is an `AtLeast`."""

Share = Annotated[
    float,
    BeforeValidator(parse_share),
    PlainSerializer(format_share, return_type=str),
    WithJsonSchema({"type": "string", "pattern": SHARE_PATTERN, "examples": ["0.1%", "50%"]}),
]
"""A fraction from 0 to 1."""

Limit = Annotated[Share, AfterValidator(_above_zero)]
"""A fraction above 0, up to 1."""

Confidence = Annotated[Share, AfterValidator(_confidence)]
"""A fraction between 0.5 and 1, both left out."""

Rate = Annotated[
    float,
    BeforeValidator(parse_rate),
    AfterValidator(_above_zero),
    PlainSerializer(format_rate, return_type=str),
    WithJsonSchema({"type": "string", "pattern": RATE_PATTERN, "examples": ["10/s", "600/m"]}),
]
"""A number per second, above 0."""

Number = Annotated[float, Field(strict=True), PlainSerializer(_short)]
"""A plain number, whole ones written without a fraction."""


def _percentile(value: float) -> float:
    if value < 1:
        raise broken_rule(
            f"{value:g} is below the first percentile: write {100 * value:g} for P{100 * value:g}"
        )
    return value


Percentile = Annotated[Number, Field(gt=0, lt=100), AfterValidator(_percentile)]
"""As people write it: 95 for P95."""
Count = Annotated[int, Field(strict=True, gt=0)]
CountOrZero = Annotated[int, Field(strict=True, ge=0)]
Switch = Annotated[bool, Field(strict=True), WithJsonSchema({"enum": _ON_OR_OFF})]
Text = Annotated[str, Field(min_length=1)]


def _as_rule(check: Callable[[str], str]) -> Callable[[str], str]:
    """The check of a name as a rule of the policy, whose message says what to do."""

    def checked(value: str) -> str:
        try:
            return check(value)
        except UsageError as error:
            raise broken_rule(f"{error}: {error.remedy}") from None

    return checked


_name = _as_rule(partial(checked_name, "name"))
Name = Annotated[str, AfterValidator(_name)]
"""A DNS-1123 label: a namespace, an environment or a model."""

ServedName = Annotated[str, AfterValidator(_as_rule(checked_served_name))]
"""A name that a server gives a model, such as Qwen/Qwen3-8B."""


def _http_url(value: str) -> str:
    try:
        parts = urlsplit(value)
        good = (
            parts.scheme in {"http", "https"}
            and bool(parts.hostname)
            and parts.port != 0
            and not re.search(r"\s", value)
        )
    except ValueError:
        good = False
    if not good:
        # A token may be in the rest.
        raise broken_rule(
            f"{str(public_address(value))!r} is not a URL: write http://host:port or https://host"
        )
    if parts.username or parts.password:
        # The value is kept out of the message: it holds a secret.
        raise broken_rule("holds a user name or password: give keys through api_key_env")
    return value.rstrip("/")


def _server_url(value: str) -> str:
    url = _http_url(value)
    if url.endswith("/v1"):
        raise broken_rule(f"{value!r} ends with /v1: end it before, {url.removesuffix('/v1')!r}")
    return url


_PLACEHOLDERS = {"model": "m", "environment": "e", "namespace": "n"}


def _filled(value: str) -> str:
    """The template with something in its placeholders."""
    try:
        names = {name for _, name, _, _ in string.Formatter().parse(value) if name is not None}
        filled = value.format(**_PLACEHOLDERS) if names <= _PLACEHOLDERS.keys() else ""
    except (ValueError, KeyError, IndexError):
        filled = ""
    if not filled:
        raise broken_rule(
            f"{value!r} may hold {{model}}, {{environment}} and {{namespace}}, and nothing else "
            "in braces"
        )
    return filled


def _url_template(value: str) -> str:
    _server_url(_filled(value))
    return value.rstrip("/")


def _name_template(value: str) -> str:
    _name(_filled(value))
    return value


HttpUrl = Annotated[str, AfterValidator(_http_url), WithJsonSchema({"type": "string"})]
"""An http or https URL without credentials and without a trailing slash."""

ServerUrl = Annotated[str, AfterValidator(_server_url), WithJsonSchema({"type": "string"})]
"""The same of a model server, without the /v1 of its paths."""

UrlTemplate = Annotated[str, AfterValidator(_url_template)]
"""The same, with {model}, {environment} and {namespace} in it."""

NameTemplate = Annotated[str, AfterValidator(_name_template)]
"""A DNS-1123 label with {model}, {environment} and {namespace} in it."""


def _environment_variable(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value):
        # Someone may have pasted the key itself: it must not come back in a message.
        raise broken_rule(
            "must be the name of an environment variable (letters, digits, '_'), not the key itself"
        )
    return value


UrlPath = Annotated[str, Field(pattern=r"^/[!-~]*$")]
"""The path of a URL, from its host's root."""

VariableName = Annotated[str, AfterValidator(_environment_variable)]


def find_zone(name: str) -> tzinfo:
    """The time zone called `name`; UTC is known even where no time zone database is installed.

    Raises:
        ZoneInfoNotFoundError, ValueError, OSError: there is none.
    """
    return UTC if name == "UTC" else ZoneInfo(name)


def _zone_name(value: str) -> str:
    try:
        find_zone(value)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise broken_rule(
            f"{value!r} is not a time zone: write UTC or one like Europe/Berlin"
        ) from None
    return value


ZoneName = Annotated[str, AfterValidator(_zone_name)]


def once_each(values: tuple[_H, ...]) -> tuple[_H, ...]:
    """The values, unless one is there twice."""
    twice = sorted({str(value) for value in values if values.count(value) > 1})
    if twice:
        raise broken_rule(f"has {', '.join(twice)} more than once")
    return values


def ascending(values: Iterable[Any]) -> bool:
    """Return True if each value is greater than the one before it."""
    return all(earlier < later for earlier, later in pairwise(values))


class MayBeOff:
    """Marks a field `X | None` that `off` (or null) leaves out.

    An empty value is no `off`: the loader refuses it.
    """

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        return core_schema.no_info_before_validator_function(
            lambda value: None if value is False else value, handler(source)
        )

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return {"anyOf": [handler(schema), MAY_BE_OFF]}
