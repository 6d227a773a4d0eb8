"""A real browser without a window: what a page shows once its scripts have run."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest


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


def _browser(profile: Path, *options: str) -> str:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        if os.environ.get("VLLM_ROLLOUT_REQUIRE") == "all":
            pytest.fail("no chromium on PATH: apt-get install chromium")
        pytest.skip("no chromium on PATH: apt-get install chromium")
    done = subprocess.run(
        [
            chromium,
            "--headless",
            "--no-sandbox",  # chromium refuses to run as root with one
            "--disable-gpu",
            "--disable-quic",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            f"--user-data-dir={profile}",
            *options,
        ],
        capture_output=True,
        text=True,
        timeout=90,
        check=True,
    )
    return done.stdout
