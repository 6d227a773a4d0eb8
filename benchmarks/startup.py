"""How long commands take to start, beside other command lines of the same work.

    python benchmarks/startup.py [--repeats 7]

Medians of wall time and of CPU time (user and system), the commands in turns. Beside ours: `helm
version`, and the `kubectl version --client` of the same kind where it is installed; a bare Python
and pytest without any plugin say what is theirs. What each package's pytest plugin adds to a test
run that asks for no gate, the suite's own among them, is the difference to the run without it:
pytest loads the plugins of all packages that are installed, and no package may stop another's.
Run it by the Python of an environment that has the suite alone to see what that brings along.
"""

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from importlib.metadata import distributions
from pathlib import Path

BIN = Path(sys.executable).parent
PYTEST = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
NO_GATE = "pytest, a test that is no gate"
GATES = ["--collect-only", "-m", "staging", "--model", "llama-2-7b"]


def commands() -> dict[str, list[str]]:
    """What is started, by the name of its row."""
    found = {
        "python -c pass": [sys.executable, "-c", "pass"],
        "vllm-rollout --version": [str(BIN / "vllm-rollout"), "--version"],
        "vllm-rollout --help": [str(BIN / "vllm-rollout"), "--help"],
        "gate-and-promote --help": [str(BIN / "gate-and-promote"), "--help"],
        "vllm-rollout status (nothing deployed, local)": [
            str(BIN / "vllm-rollout"), "status", "llama-2-7b", "--platform", "local",
        ],
        "pytest --collect-only -m staging": [*PYTEST, *GATES, "--base-url", "http://127.0.0.1:9"],
        NO_GATE: PYTEST,
        **{f"the same without {package}": run for package, run in without_each_plugin().items()},
        "pytest with no plugin at all": [*PYTEST, "--disable-plugin-autoload"],
    }  # fmt: skip
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vllm-rollout/bin"
    helm = shutil.which("helm") or next(map(str, cache.glob("helm4*")), None)
    if helm:
        found["helm version"] = [helm, "version"]
    if kubectl := shutil.which("kubectl"):
        found["kubectl version --client"] = [kubectl, "version", "--client"]
    return found


def without_each_plugin() -> dict[str, list[str]]:
    """The run of a test that is no gate without the pytest plugins of a package, by its name."""
    plugins = defaultdict(list)
    for package in distributions():
        for point in package.entry_points.select(group="pytest11"):
            plugins[package.name].append(f"no:{point.name}")
    return {
        package: [*PYTEST, *(word for name in names for word in ("-p", name))]
        for package, names in sorted(plugins.items())
    }


def seconds(command: list[str], folder: Path) -> tuple[float, float]:
    """(wall, CPU) of one run."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    subprocess.run(command, cwd=folder, capture_output=True, check=False)
    wall, after = time.monotonic() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return wall, cpu


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    asked = commands()
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in asked}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "test_own.py").write_text("def test_own(): pass\n")
        for turn in range(repeats + 1):
            for name, command in asked.items():
                measured = seconds(command, Path(folder))
                if turn:  # the first fills the caches
                    taken[name].append(measured)
    medians = {
        name: [statistics.median(column) for column in zip(*pairs, strict=True)]
        for name, pairs in taken.items()
    }
    print(f"median of {repeats}, seconds{'':29}wall    CPU")
    for name, (wall, cpu) in medians.items():
        print(f"{name:48}{wall:7.2f}{cpu:7.2f}")
    print(f"\nadded to a test run that is no gate{'':17}wall    CPU")
    for package in without_each_plugin():
        without = medians[f"the same without {package}"]
        wall, cpu = (a - b for a, b in zip(medians[NO_GATE], without, strict=True))
        print(f"{package:48}{wall:7.3f}{cpu:7.3f}")


if __name__ == "__main__":
    main()
