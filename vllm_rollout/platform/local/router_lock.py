"""One router per release: a file lock, which the kernel gives back however its holder ends."""

import fcntl
import time
from pathlib import Path

_POLL_SECONDS = 0.02


class RouterLock:
    """Held by a release's router for its life, and by whoever makes sure that there is none."""

    def __init__(self, state_dir: Path, release: str) -> None:
        folder = state_dir / "locks"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._file = (folder / f"{release}.lock").open("w")

    def take(self, *, within_seconds: float) -> bool:
        """Take the lock; False when someone else still has it after so long."""
        deadline = time.monotonic() + within_seconds
        while True:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    return False
                time.sleep(_POLL_SECONDS)
            else:
                return True

    def release(self) -> None:
        """Give it back."""
        self._file.close()
