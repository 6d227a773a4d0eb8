"""Events of a calendar."""

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class Event:
    """Something that closes production, from `start` on and before `end`."""

    start: datetime
    end: datetime
    summary: str
