"""A real browser without a window: what a page shows once its scripts have run."""

import shutil
import subprocess
from pathlib import Path

from cluster.required import missing


def dom(url: str, profile: Path, *, script_seconds: float = 0.0) -> str:
    """The DOM of a page. A missing browser skips the test, or fails it where all is required.

    `script_seconds` is for how long, by the page's own clock, scripts go on before it is taken.
    """
    budget = [f"--virtual-time-budget={script_seconds * 1000:.0f}"] if script_seconds else []
    return _browser(profile, *budget, "--dump-dom", url)


def picture(url: str, profile: Path, file: Path, *, width: int, height: int) -> None:
    """Write a picture (PNG) of a page's first screen."""
    _browser(
        profile, "--hide-scrollbars", f"--window-size={width},{height}", f"--screenshot={file}", url
    )


def browser_command(profile: Path, *options: str) -> list[str]:
    """The command of a browser. A missing one skips the test, or fails it where all is required."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        missing("no chromium on PATH: apt-get install chromium")
    return [
        chromium,
        "--headless",
        "--no-sandbox",  # chromium refuses to run as root with one
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        f"--user-data-dir={profile}",
        *options,
    ]


def _browser(profile: Path, *options: str) -> str:
    done = subprocess.run(
        browser_command(profile, "--disable-quic", *options),
        capture_output=True,
        text=True,
        timeout=90,
        check=True,
    )
    return done.stdout
