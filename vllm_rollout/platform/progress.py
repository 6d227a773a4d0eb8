"""Progress of long work on a platform, shown by whoever runs the command."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

Show = Callable[[str], None]

_shown_by: list[Show] = []


@contextmanager
def progress_shown(show: Show) -> Iterator[None]:
    """Give `show` each line of progress meanwhile; it is called from other threads too."""
    _shown_by.append(show)
    try:
        yield
    finally:
        _shown_by.remove(show)


def show_progress(text: str) -> None:
    """Show where long work stands, to the innermost that asked for it."""
    if _shown_by:
        _shown_by[-1](text)
