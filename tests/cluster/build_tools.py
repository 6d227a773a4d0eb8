"""Find or build the real Helm and Kubernetes binaries that the tests run against.

    make parts
    python tests/cluster/build_tools.py [helm3 helm4 etcd kube-apiserver kube-controller-manager]

Each is pinned by a Go module of its own under `tools/`, is built once into the user's cache (Helm
2-4 minutes, the API server about 10 on one slow core) and is found there ever after. Only Go is
needed. A `helm` on PATH and what `KUBEBUILDER_ASSETS` (envtest's folder) holds is used instead.
Tests never build: they call `tool` and skip, loudly, what is missing.
"""

import argparse
import fcntl
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

MODULES = Path(__file__).parent / "tools"


class ToolMissingError(Exception):
    """The binary is not there; the message says how to get it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """A binary: the pinned module it comes from, and the variables that hold its version."""

    module: str
    source: str
    package: str
    stamps: tuple[str, ...] = ()

    @property
    def version(self) -> str:
        """The version that the module's go.mod requires, `v3.22.0`."""
        text = (MODULES / self.module / "go.mod").read_text()
        match = re.search(rf"\s{re.escape(self.source)} (v[\w.+-]+)", text)
        if match is None:
            raise ToolMissingError(f"tools/{self.module}/go.mod does not require {self.source}")
        return match[1]

    @property
    def linker_flags(self) -> str:
        """Strip the binary, and write its version into it."""
        major, minor, _ = self.version.removeprefix("v").split(".", 2)
        known = {"version": self.version, "major": major, "minor": minor}
        return " ".join(["-s -w", *(f"-X {stamp.format_map(known)}" for stamp in self.stamps)])


_KUBERNETES = (
    "k8s.io/component-base/version.gitVersion={version}",
    "k8s.io/component-base/version.gitMajor={major}",
    "k8s.io/component-base/version.gitMinor={minor}",
)
TOOLS = {
    "helm3": Tool(
        module="helm3",
        source="helm.sh/helm/v3",
        package="helm.sh/helm/v3/cmd/helm",
        stamps=("helm.sh/helm/v3/internal/version.version={version}",),
    ),
    "helm4": Tool(
        module="helm4",
        source="helm.sh/helm/v4",
        package="helm.sh/helm/v4/cmd/helm",
        stamps=("helm.sh/helm/v4/internal/version.version={version}",),
    ),
    "etcd": Tool(
        module="etcd",
        source="go.etcd.io/etcd/server/v3",
        package="go.etcd.io/etcd/server/v3",
    ),
    "kube-apiserver": Tool(
        module="apiserver",
        source="k8s.io/kubernetes",
        package="k8s.io/kubernetes/cmd/kube-apiserver",
        stamps=_KUBERNETES,
    ),
    "kube-controller-manager": Tool(
        module="apiserver",
        source="k8s.io/kubernetes",
        package="k8s.io/kubernetes/cmd/kube-controller-manager",
        stamps=_KUBERNETES,
    ),
}


def cache() -> Path:
    """Where the binaries are kept."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "vllm-rollout" / "bin"


def tool(name: str) -> Path:
    """The binary `name`: one that was there already, or the one built before.

    Raises:
        ToolMissingError: neither is there.
    """
    had = _had_already(name)
    built = _built(name)
    if had is None and not built.is_file():
        raise ToolMissingError(
            f"{name} is missing: python tests/cluster/build_tools.py {name} builds it (needs Go)"
        )
    return had or built


def build(name: str) -> Path:
    """Build `name` unless it is there; of several builders at once one builds.

    Raises:
        ToolMissingError: there is no Go, or the build failed.
    """
    target = _built(name)
    target.parent.mkdir(parents=True, exist_ok=True)
    with (target.parent / f".{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.is_file():
            unfinished = target.with_name(f".{target.name}.unfinished")
            _go_build(TOOLS[name], unfinished)
            unfinished.replace(target)
    return target


def _go() -> str | None:
    return shutil.which("go") or shutil.which("go", path="/usr/local/go/bin")


def _go_build(wanted: Tool, target: Path) -> None:
    go = _go()
    if go is None:
        raise ToolMissingError("there is no Go on PATH: install Go 1.26 or later from go.dev/dl")
    arguments = [go, "build", "-trimpath", "-buildvcs=false", "-ldflags", wanted.linker_flags]
    finished = subprocess.run(
        [*arguments, "-o", str(target), wanted.package],
        cwd=MODULES / wanted.module,
        env=os.environ | {"CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly"},
        check=False,
    )
    if finished.returncode != 0:
        raise ToolMissingError(f"go build {wanted.package} failed, see above")


def _built(name: str) -> Path:
    return cache() / f"{name}-{TOOLS[name].version}"


def _had_already(name: str) -> Path | None:
    """A `helm` of that major version on PATH; what `KUBEBUILDER_ASSETS` holds of the rest."""
    assets = os.environ.get("KUBEBUILDER_ASSETS")
    if assets and os.access(Path(assets) / name, os.X_OK):
        return Path(assets) / name
    helm = shutil.which("helm") if name.startswith("helm") else None
    if helm is None:
        return None
    command = [helm, "version", "--template", "{{.Version}}"]
    version = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    return Path(helm) if version.startswith(f"v{name.removeprefix('helm')}.") else None


def _about(missing: list[str], *, go: str | None) -> str:
    """What is about to happen, or why nothing is."""
    if go is None:
        return (
            f"{', '.join(missing)}: missing, and there is no Go to build them with. Install Go "
            "1.26 or later from go.dev/dl. `make test` needs none of them.\n"
        )
    return (
        f"{', '.join(missing)}: built now with {go} into {cache()}, once; all of them take some 15 "
        "minutes on two cores. Ctrl-C stops it, and what is done stays. `make test` needs none of "
        "them.\n"
    )


def main() -> int:
    """Build what is named, or all."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(TOOLS)}")
    arguments = parser.parse_args()
    names = arguments.names or list(TOOLS)
    unknown = [name for name in names if name not in TOOLS]
    if unknown:
        parser.error(f"no such tool: {', '.join(unknown)}")
    missing = [name for name in names if not (_had_already(name) or _built(name).is_file())]
    if missing:
        sys.stdout.write(_about(missing, go=_go()))
        sys.stdout.flush()
    try:
        for name in names:
            sys.stdout.write(f"{name}: {_had_already(name) or build(name)}\n")
            sys.stdout.flush()
    except ToolMissingError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
