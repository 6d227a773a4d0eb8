"""When production may be deployed to."""

import re
from datetime import date, time, tzinfo
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainSerializer,
    WithJsonSchema,
    model_validator,
)

from vllm_rollout.policy.fields import (
    Block,
    CountOrZero,
    HttpUrl,
    MayBeOff,
    Span,
    Switch,
    Text,
    VariableName,
    ZoneName,
    broken_rule,
    find_zone,
    once_each,
)


def _time_of_day(value: object) -> object:
    if isinstance(value, str) and re.fullmatch(r"([01]?[0-9]|2[0-3]):[0-5][0-9]", value):
        hour, minute = value.split(":")
        return time(int(hour), int(minute))
    if isinstance(value, time):
        return value
    raise broken_rule(f'{value!r} is not a time of day: write "09:00"')


def _end_of_day(value: object) -> object:
    return _MIDNIGHT if value == "24:00" else _time_of_day(value)


_MIDNIGHT = time(fold=1)
"""24:00: the end of a day, where 00:00 is its beginning."""
_DAY = 24 * 60
_NIGHT = range(1, 12 * 60 + 1)
"""Minutes that hours over midnight may last."""
TimeOfDay = Annotated[
    time,
    BeforeValidator(_time_of_day),
    PlainSerializer(lambda value: f"{value:%H:%M}", return_type=str),
    WithJsonSchema({"type": "string", "pattern": "^([01]?[0-9]|2[0-3]):[0-5][0-9]$"}),
]
EndOfDay = Annotated[
    time,
    BeforeValidator(_end_of_day),
    PlainSerializer(lambda value: "24:00" if value.fold else f"{value:%H:%M}", return_type=str),
    WithJsonSchema({"type": "string", "pattern": "^(([01]?[0-9]|2[0-3]):[0-5][0-9]|24:00)$"}),
]


def _date(value: object) -> object:
    if isinstance(value, date):
        return value
    try:
        return date.fromisoformat(str(value))
    except ValueError:
        raise broken_rule(f"{value!r} is not a date: write 2026-12-25") from None


Date = Annotated[date, BeforeValidator(_date)]
Weekday = Literal["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"]


class Hours(Block):
    """A part of a day, in the windows' time zone; over midnight where `to` is before `from`."""

    from_: TimeOfDay = Field(alias="from")
    """Its first minute."""
    to: EndOfDay
    """The minute after its last; 24:00 is the end of the day."""

    @model_validator(mode="after")
    def _has_length(self) -> Self:
        # A swapped pair, or a `from` after the default's `to`, is not meant to last all night.
        over_midnight = (self.to.hour - self.from_.hour) * 60 + self.to.minute - self.from_.minute
        if self.to <= self.from_ and not self.to.fold and over_midnight % _DAY not in _NIGHT:
            raise broken_rule(
                "from must be earlier than to, or hours over midnight last 12 h at most",
                "from",
                "to",
            )
        return self

    def __str__(self) -> str:
        return f"{self.from_:%H:%M}-{'24:00' if self.to.fold else f'{self.to:%H:%M}'}"

    def contain(self, moment: time) -> bool:
        """Return whether they have this time of day."""
        if self.from_ < self.to:
            return self.from_ <= moment < self.to
        return self.from_ <= moment or moment < self.to

    def begun_before_midnight(self, moment: time) -> bool:
        """Return whether these hours began on the day before."""
        return moment < self.to < self.from_


class Freeze(Block):
    """Days on which production is left alone, the last one included."""

    from_: Date = Field(alias="from")
    """Its first day."""
    to: Date
    """Its last day."""
    reason: Text
    """Why, for display."""

    @model_validator(mode="after")
    def _forward(self) -> Self:
        if self.from_ > self.to:
            raise broken_rule("from must not be later than to", "from", "to")
        return self


def _one_of(block: Block, *names: str) -> None:
    if len([name for name in names if getattr(block, name) is not None]) > 1:
        raise broken_rule(f"give one of {', '.join(names)}", *names)


class OnCall(Block):
    """Check whether somebody is on call; asked before production is changed."""

    command: Annotated[tuple[Text, ...] | None, MayBeOff()]
    """A command, word by word, without a shell: it ends with 0 if somebody is."""
    url: Annotated[HttpUrl | None, MayBeOff()]
    """A URL that answers 200 if somebody is."""
    url_env: VariableName | None = None
    """Environment variable that holds the URL, where it is a secret."""
    url_file: Text | None = None
    """File that holds it instead."""
    timeout: Span
    """How long either may take."""

    @model_validator(mode="after")
    def _names_a_program(self) -> Self:
        if self.command is not None and not self.command:
            raise broken_rule("has no word: write off, or a command", "command")
        _one_of(self, "url", "url_env", "url_file")
        return self


class Windows(Block):
    """When production may be deployed to. Rollback is never windowed."""

    timezone: ZoneName
    """Time zone of everything here: UTC or one like Europe/Berlin."""
    days: Annotated[tuple[Weekday, ...], Field(min_length=1), AfterValidator(once_each)]
    """Days on which it may; hours over midnight are of the day on which they begin."""
    hours: Hours
    """Hours in which it may."""
    peak_hours: tuple[Hours, ...]
    """Hours in which it may not."""
    holidays: Annotated[tuple[Date, ...], AfterValidator(once_each)]
    """Dates on which it may not."""
    avoid_last_days_of_month: Annotated[CountOrZero, Field(le=27)]
    """How many days before a month's end it may not."""
    avoid_last_days_of_quarter: Annotated[CountOrZero, Field(le=27)]
    """The same before the end of March, June, September and December."""
    freezes: tuple[Freeze, ...]
    """Stretches of days on which it may not."""
    calendar: Annotated[Text | None, MayBeOff()]
    """An iCalendar file (.ics) or its URL: while any of its events lasts it may not."""
    calendar_env: VariableName | None = None
    """Environment variable that holds the calendar's URL, where it is a secret."""
    calendar_file: Text | None = None
    """File that holds its URL instead."""
    calendar_timeout: Span
    """How long the URL may take."""
    on_call: OnCall
    """Whether somebody is on call."""
    whole_ramp: Switch
    """Whether a ramp begins only where all of it fits before production closes again."""
    closed_in_ramp: Literal["hold", "go_back"]
    """What a ramp does where production is closed before its next step: stay there, or go back."""
    enforce: Switch
    """Whether a deployment outside the windows is refused."""

    @model_validator(mode="after")
    def _one_calendar(self) -> Self:
        _one_of(self, "calendar", "calendar_env", "calendar_file")
        return self

    @property
    def zone(self) -> tzinfo:
        """`timezone` as a tzinfo."""
        return find_zone(self.timezone)
