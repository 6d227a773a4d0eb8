"""The verbs of the `helm` command line that the platform needs, under Helm 3 and Helm 4."""

import re
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, TypeAdapter, ValidationError

from vllm_rollout.model.errors import DeployError, RolloutError, UsageError
from vllm_rollout.platform.kubernetes.command import (
    BusyError,
    ReleaseNotFoundError,
    WebhookError,
    patiently,
    run,
)
from vllm_rollout.platform.kubernetes.kubeconfig import (
    Kubeconfig,
    helm_environment,
    resolve_kubeconfig,
)
from vllm_rollout.platform.kubernetes.release_storage import driver_of_shell
from vllm_rollout.platform.writer import Guard

_QUICK_SECONDS = 60.0
_DESCRIPTION_MAX = 256
"""Helm 4 refuses longer ones on rollback."""


class HelmVersion(BaseModel, frozen=True):
    """Version of the command line, `3.22` for v3.22.0."""

    major: int
    minor: int


class HelmRevision(BaseModel, frozen=True):
    """One line of `helm history`."""

    revision: int
    updated: datetime
    status: str
    chart: str
    description: str = ""


class Capabilities(BaseModel, frozen=True):
    """Abilities of a cluster: its version, and `group/version` and `group/version/Kind` of each."""

    version: str
    apis: tuple[str, ...]


_T = TypeVar("_T")
_HISTORY = TypeAdapter(list[HelmRevision])
_VALUES = TypeAdapter(dict[str, Any] | None)


class Helm:
    """The `helm` command line against one cluster, with one identity.

    Every method raises as `command.run` does, and as `kubeconfig` and `driver`, which gives the
    storage driver of a release. No secret of a deployment is
    passed to it: values name Secrets. Changes are made under `guard`, where one is set.
    """

    guard: Guard | None = None

    def __init__(
        self,
        binary: str = "helm",
        *,
        kubeconfig: Callable[[], Kubeconfig] = resolve_kubeconfig,
        driver: Callable[[str], str] = lambda _release: driver_of_shell(),
    ) -> None:
        self._binary = binary
        self._kubeconfig = kubeconfig
        self._driver = driver

    @cached_property
    def version(self) -> HelmVersion:
        """The version found.

        Raises:
            UsageError: neither Helm 3 nor Helm 4.
        """
        text = self._run("version", "--template", "{{.Version}}").strip()
        match = re.match(r"v?([34])\.(\d+)", text)
        if match is None:
            raise UsageError(
                f"{self._binary} is version {text!r}", remedy="Helm 3 and Helm 4 are supported."
            )
        return HelmVersion(major=int(match[1]), minor=int(match[2]))

    @cached_property
    def _describes_rollbacks(self) -> bool:
        # Came with a minor version of Helm 4; distributions backport, so the help text decides.
        return "--description" in self._run("rollback", "--help")

    @cached_property
    def forcing(self) -> tuple[str, ...]:
        """Options by which a change takes fields from their managers.

        None under Helm 3, which patches fields whoever set them. Helm 4 refuses the second option
        for a release that Helm 3 made without the first one.
        """
        return () if self.version.major == 3 else ("--server-side=true", "--force-conflicts")

    def upgrade(
        self,
        release: str,
        chart: Path,
        *,
        namespace: str,
        values: Sequence[Path],
        description: str,
        timeout: timedelta,
        force: bool = False,
    ) -> None:
        """Install or upgrade, with exactly these values files, and wait until pods are ready.

        `force` takes fields that somebody else has set; without it Helm 4 fails at them.
        """
        self._change(
            "upgrade",
            *("--install", release, str(chart)),
            *("--namespace", namespace, "--reset-values", *_files(values)),
            *(self.forcing if force else ()),
            *("--description", _shortened(description)),
            *self._waiting(timeout),
            release=release,
            timeout=timeout,
        )

    def rollback(
        self, release: str, revision: int, *, namespace: str, description: str, timeout: timedelta
    ) -> None:
        """Make a new revision with the state of `revision` and wait until pods are ready.

        It takes fields that somebody else has set: the way back always works. Helm 3 takes no
        description for a rollback and writes its own.
        """
        described = ["--description", _shortened(description)] if self._describes_rollbacks else []
        self._change(
            *("rollback", release, str(revision), "--namespace", namespace),
            *described,
            *self.forcing,
            *self._waiting(timeout),
            release=release,
            timeout=timeout,
            again=(BusyError, WebhookError),
        )

    def uninstall(self, release: str, *, namespace: str, timeout: timedelta) -> None:
        """Remove the release, its history too, and wait until its objects are gone."""
        try:
            self._change(
                *("uninstall", release, "--namespace", namespace, "--cascade", "foreground"),
                *self._waiting(timeout),
                release=release,
                timeout=timeout,
            )
        except ReleaseNotFoundError:
            return

    def history(self, release: str, *, namespace: str) -> list[HelmRevision]:
        """All revisions, oldest first; none when there is no such release."""
        try:
            text = self._run(
                *("history", release, "--namespace", namespace, "--max", "100000", "-o", "json"),
                release=release,
            )
        except ReleaseNotFoundError:
            return []
        entries = _parsed(_HISTORY, text, "history")
        return sorted(entries, key=lambda entry: entry.revision)

    def values(self, release: str, revision: int, *, namespace: str) -> dict[str, Any]:
        """The values given to that revision, the chart's defaults left out."""
        arguments = ("get", "values", release, "--namespace", namespace)
        text = self._run(*arguments, "--revision", str(revision), "-o", "json", release=release)
        return _parsed(_VALUES, text, "get values") or {}

    def manifest(self, release: str, revision: int, *, namespace: str) -> list[dict[str, Any]]:
        """The objects of that revision."""
        arguments = ("get", "manifest", release, "--namespace", namespace)
        return _objects(self._run(*arguments, "--revision", str(revision), release=release))

    def hooks(self, release: str, revision: int, *, namespace: str) -> list[dict[str, Any]]:
        """The hooks of that revision."""
        arguments = ("get", "hooks", release, "--namespace", namespace)
        return _objects(self._run(*arguments, "--revision", str(revision), release=release))

    def template(
        self,
        release: str,
        chart: Path,
        *,
        namespace: str,
        values: Sequence[Path] = (),
        upgrade: bool = False,
        able: Capabilities | None = None,
    ) -> list[dict[str, Any]]:
        """The objects that the chart makes of the values; asks no cluster.

        As of an install or an `upgrade`, on a cluster that is `able` to do this much (None leaves
        it to Helm).
        """
        more = ["--is-upgrade"] if upgrade else []
        if able is not None:
            more += ["--kube-version", able.version]
            more += [word for api in able.apis for word in ("--api-versions", api)]
        arguments = ("template", release, str(chart), "--namespace", namespace)
        return _objects(self._run(*arguments, *more, *_files(values)))

    def dry_run(self, release: str, chart: Path, *, namespace: str, values: Sequence[Path]) -> None:
        """Prepare `upgrade` with the cluster's help: its kinds, its objects, who owns them.

        No Helm submits anything then. Nothing where the command line is too old to hide Secrets.
        """
        if "--hide-secret" not in self._run("upgrade", "--help"):
            return
        self._run(
            *("upgrade", "--install", release, str(chart), "--namespace", namespace),
            *("--reset-values", *_files(values), "--dry-run=server", "--hide-secret"),
            release=release,
        )

    def lint(self, chart: Path, *, values: Sequence[Path] = ()) -> str:
        """Return the output of `helm lint --strict` for a chart that passes.

        Raises:
            UsageError: it does not pass.
        """
        return self._run("lint", "--strict", str(chart), *_files(values))

    def _waiting(self, timeout: timedelta) -> list[str]:
        # Helm 4 without it is content when the objects are made; bare `--wait` is 3's spelling.
        wait = "--wait" if self.version.major == 3 else "--wait=watcher"
        return [wait, "--timeout", f"{timeout.total_seconds():.0f}s"]

    def _change(
        self,
        *arguments: str,
        release: str,
        timeout: timedelta,
        again: tuple[type[RolloutError], ...] = (BusyError,),
    ) -> None:
        seconds = _QUICK_SECONDS + timeout.total_seconds()
        self._run(
            *arguments, release=release, timeout_seconds=seconds, guard=self.guard, again=again
        )

    def _run(
        self,
        *arguments: str,
        release: str = "",
        timeout_seconds: float = _QUICK_SECONDS,
        guard: Guard | None = None,
        again: tuple[type[RolloutError], ...] = (BusyError,),
    ) -> str:
        cluster = self._kubeconfig() if release else None
        driver = self._driver(release) if release else ""
        with helm_environment(cluster, driver=driver) as environment:
            return patiently(
                lambda seconds: run(
                    self._binary,
                    arguments,
                    timeout_seconds=seconds,
                    where=str(cluster or "no cluster"),
                    environment=environment,
                    guard=guard,
                ),
                timeout_seconds=timeout_seconds,
                again=again,
            )


def _files(paths: Sequence[Path]) -> list[str]:
    return [argument for path in paths for argument in ("--values", str(path))]


def is_described(text: str, description: str) -> bool:
    """Return whether Helm's `text` begins with `description`, as far as Helm keeps it."""
    return text.startswith(description[: _DESCRIPTION_MAX - 1])


def _shortened(description: str) -> str:
    if len(description) <= _DESCRIPTION_MAX:
        return description
    return description[: _DESCRIPTION_MAX - 1] + "…"


def _parsed(adapter: TypeAdapter[_T], text: str, verb: str) -> _T:
    try:
        return adapter.validate_json(text)
    except ValidationError as error:
        raise DeployError(f"helm {verb} answered what is not its JSON: {error}") from error


def _objects(text: str) -> list[dict[str, Any]]:
    try:
        return [document for document in yaml.safe_load_all(text) if document]
    except yaml.YAMLError as error:
        raise DeployError(f"a manifest is not YAML: {error}") from error
