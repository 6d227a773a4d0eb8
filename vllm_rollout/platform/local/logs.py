"""Log files of routers and replicas: where they are, their last lines, their size."""

import os
import shutil
from collections.abc import Collection, Iterable
from pathlib import Path

_MAX_BYTES = 10_000_000
_TAIL_BYTES = 256_000
_KEPT_FILES = 40


def log_folder(state_dir: Path, release: str) -> Path:
    """Return the folder of a release's logs."""
    return state_dir / "logs" / release


def tail(path: Path, lines: int) -> list[str]:
    """The last `lines` lines; none when there is no file."""
    if lines <= 0 or not path.is_file():
        return []
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - _TAIL_BYTES))
        text = file.read().decode(errors="replace")
    return text.splitlines()[-lines:]


def redact(text: str, secrets: Iterable[str]) -> str:
    """`text` without the given secret values."""
    # The longest first: one secret may be part of another.
    for secret in sorted(filter(None, secrets), key=len, reverse=True):
        text = text.replace(secret, "[redacted]")
    return text


def trim(folder: Path, *, live: Collection[Path]) -> None:
    """Cut each log that has grown too large (one older part is kept); drop the oldest dead ones."""
    for path in folder.glob("*.log"):
        if path.stat().st_size > _MAX_BYTES:
            shutil.copyfile(path, path.with_suffix(".log.1"))
            # Its process keeps the file open for appending and goes on at the new end.
            os.truncate(path, 0)
    dead = sorted(set(folder.iterdir()) - set(live), key=lambda path: path.stat().st_mtime)
    for path in dead[:-_KEPT_FILES]:
        path.unlink()
