"""axe-core, which finds what of a page keeps people from reading it; never in this repository.

    python tests/support/axe/__init__.py

npm brings the version that `package-lock.json` pins by its hash, once, into the user's cache.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
_VERSION = json.loads((HERE / "package.json").read_text())["dependencies"]["axe-core"]
_RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]


def script() -> Path:
    """Where the script is, once it was brought."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "vllm-rollout" / f"axe-{_VERSION}.js"


def question() -> str:
    """JavaScript that gives what breaks WCAG AA in the page: the rule, and where.

    A missing script skips the test, or fails it where all is required.
    """
    from cluster.required import missing  # a script, which this file is too, has no tests beside it

    if not script().is_file():
        missing("no axe-core in the cache: make parts")
    return (
        f"{script().read_text(encoding='utf-8')};"
        f"axe.run({{runOnly: {_RULES}, resultTypes: ['violations']}}).then(found => "
        "found.violations.flatMap(v => v.nodes.map(n => `${v.id}: ${n.html} ${n.failureSummary}`)))"
    )


def bring() -> int:
    """Bring the script into the cache; return 1 where it cannot be had."""
    target = script()
    if not target.is_file():
        npm = shutil.which("npm")
        if npm is None:
            sys.stderr.write("axe-core: missing, and there is no npm to bring it: install npm\n")
            return 1
        with tempfile.TemporaryDirectory() as folder:
            for name in ("package.json", "package-lock.json"):
                shutil.copy(HERE / name, folder)
            command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
            subprocess.run(command, cwd=folder, check=True, timeout=300)
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = target.with_suffix(f".{os.getpid()}")
            shutil.copy(Path(folder) / "node_modules" / "axe-core" / "axe.min.js", partial)
            partial.replace(target)
    sys.stdout.write(f"axe-core: {target}\n")
    return 0


if __name__ == "__main__":
    sys.exit(bring())
