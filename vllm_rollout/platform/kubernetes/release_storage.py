"""Where Helm keeps the revisions of each release, written down beside them at its first deploy."""

import os
from collections.abc import Callable

from pydantic import BaseModel, ConfigDict, ValidationError

from vllm_rollout.model.errors import DeployError, UsageError
from vllm_rollout.platform.writer import Store

_DRIVERS = {
    "": "secret",
    "secret": "secret",
    "secrets": "secret",
    "configmap": "configmap",
    "configmaps": "configmap",
    "sql": "sql",
}


class _Record(BaseModel):
    """Helm's storage driver for a release, and a revision that its history has, 0 for none."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    driver: str
    revision: int = 0


class ReleaseStorage:
    """Helm's storage driver of each release, by its name, and whether it should have a history.

    A release stays where its first deploy has put it, whatever HELM_DRIVER says later. Every
    method raises as the store.
    """

    def __init__(self, store: Callable[[], Store]) -> None:
        self._store = store
        self._known: dict[str, str] = {}

    def driver(self, release: str) -> str:
        """Helm's driver for the release: as written down, else by HELM_DRIVER.

        Raises:
            UsageError: HELM_DRIVER names none whose releases outlive the command.
        """
        if release in self._known:
            return self._known[release]
        record, _ = self._read(release)
        if record is None:
            return driver_of_shell()
        if record.revision:
            self._known[release] = record.driver
        return record.driver

    def expected(self, release: str) -> str | None:
        """A revision that the history should have, as text, "" for none; None if not known."""
        record, _ = self._read(release)
        if record is None:
            return None
        if not record.revision:
            return ""
        return f"revision {record.revision}, by Helm's driver {record.driver}"

    def begin(self, release: str, newest: Callable[[], int]) -> None:
        """Write the driver down, before a change of a release that has none or no history.

        `newest` gives the newest revision by the driver as it is known, 0 for none.
        """
        record, version = self._read(release)
        driver = driver_of_shell()
        if record is None or (record.driver != driver and not record.revision and newest() == 0):
            self._write(release, _Record(driver=driver), version)

    def made(self, release: str, newest: Callable[[], int]) -> None:
        """Write down, once, that the release has a history."""
        if release in self._known:
            return
        record, version = self._read(release)
        if record is not None and not record.revision and (revision := newest()):
            self._write(release, _Record(driver=record.driver, revision=revision), version)

    def forget(self, release: str) -> None:
        """Write down that the release has no history, right before it is removed."""
        record, version = self._read(release)
        if record is None or record.revision:
            self._write(release, _Record(driver=self.driver(release)), version)
        self._known.pop(release, None)

    def _read(self, release: str) -> tuple[_Record | None, str | None]:
        entry = self._store().read(_key(release))
        if entry is None:
            return None, None
        try:
            return _Record.model_validate(entry.value), entry.version
        except ValidationError as error:
            raise DeployError(
                f"{_key(release)} in the suite's store cannot be read: {error}",
                remedy="Restore it from a backup.",
            ) from error

    def _write(self, release: str, record: _Record, version: str | None) -> None:
        self._store().write(_key(release), record.model_dump(), expect=version)


def driver_of_shell() -> str:
    """Helm's storage driver by HELM_DRIVER.

    Raises:
        UsageError: it names none whose releases outlive the command.
    """
    named = os.environ.get("HELM_DRIVER", "")
    if named not in _DRIVERS:
        raise UsageError(
            f"HELM_DRIVER={named}: releases would not be kept in the cluster or a database",
            remedy="unset HELM_DRIVER, or set it to secret, configmap or sql.",
        )
    return _DRIVERS[named]


def _key(release: str) -> str:
    return f"helm/{release}"
