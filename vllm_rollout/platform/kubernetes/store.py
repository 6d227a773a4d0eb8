"""Documents as ConfigMaps and leases as Leases, beside the releases they are about."""

import hashlib
import json
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from vllm_rollout.model.errors import DeployError
from vllm_rollout.next_command import next_command
from vllm_rollout.platform.base import ConflictError, Entry, Lease, LeaseHeldError
from vllm_rollout.platform.kubernetes.api import (
    TIMEOUT_SECONDS,
    ExpiredError,
    KubernetesApi,
    NotFoundError,
)

KEY_ANNOTATION = "vllm-rollout/key"
_LABELS = {"app.kubernetes.io/managed-by": "vllm-rollout"}
_SELECTOR = "app.kubernetes.io/managed-by=vllm-rollout"
_DATA = "value.json"
_MAX_BYTES = 1_000_000
"""A ConfigMap holds 1 MiB with all its metadata."""
_PAGE = 500


def object_name(key: str) -> str:
    """The name of the object that holds `key`: any text becomes a DNS-1123 label.

    The digest may not be undone, so the key itself is kept in an annotation.
    """
    return "vllm-rollout-" + hashlib.sha256(key.encode()).hexdigest()[:32]


def utc_now() -> datetime:
    """The wall clock, in UTC."""
    return datetime.now(UTC)


class KubernetesStore:
    """The `Store` in one namespace. `now` is the clock that dates leases, for display.

    Every method raises as `KubernetesApi.doing`, besides what it names itself.
    """

    def __init__(
        self, api: KubernetesApi, namespace: str, *, now: Callable[[], datetime] = utc_now
    ) -> None:
        self._api = api
        self._namespace = namespace
        self._now = now
        self._renewing = threading.Lock()

    def read(self, key: str) -> Entry | None:
        """The entry, or None.

        Raises:
            DeployError: the object was edited manually and cannot be read.
        """
        name = object_name(key)
        try:
            with self._api.doing("get", f"configmaps in namespace {self._namespace}"):
                found = self._api.core.read_namespaced_config_map(
                    name, self._namespace, _request_timeout=TIMEOUT_SECONDS
                )
        except NotFoundError:
            return None
        try:
            value = json.loads(found.data[_DATA])
        except (ValueError, KeyError, TypeError) as error:
            raise self._damaged(key, str(error)) from error
        if (found.metadata.annotations or {}).get(KEY_ANNOTATION) != key:
            raise self._damaged(key, f"its annotation {KEY_ANNOTATION} names another key")
        return Entry(key, value, str(found.metadata.resource_version))

    def write(self, key: str, value: Any, *, expect: str | None) -> str:
        """Write `value` if the key is still at version `expect` (None: new); return its version.

        Raises:
            ConflictError: the key is at another version.
            DeployError: larger than a ConfigMap may be.
            ValueError, TypeError: `value` is not JSON.
        """
        text = json.dumps(value, allow_nan=False)
        if len(text.encode()) > _MAX_BYTES:
            raise DeployError(
                f"{key} has {len(text.encode()):,} bytes; a ConfigMap holds {_MAX_BYTES:,}",
                remedy="Shorten the attachments that the gates keep.",
            )
        name = object_name(key)
        body = {
            "metadata": {
                "name": name,
                "labels": _LABELS,
                "annotations": {KEY_ANNOTATION: key},
                "resourceVersion": expect,
            },
            "data": {_DATA: text},
        }
        written = self._put("config_map", "configmaps", name, body, new=expect is None, what=key)
        return str(written.metadata.resource_version)

    def keys(self, prefix: str) -> list[str]:
        """All keys that begin with `prefix`, sorted."""
        found = self._listed(page=_PAGE)
        return sorted(key for key in found if key and key.startswith(prefix))

    def _listed(self, *, page: int | None) -> list[str | None]:
        keys: list[str | None] = []
        more: str | None = None
        while True:
            try:
                with self._api.doing("list", f"configmaps in namespace {self._namespace}"):
                    found = self._api.core.list_namespaced_config_map(
                        self._namespace,
                        label_selector=_SELECTOR,
                        limit=page,
                        _continue=more,
                        _request_timeout=TIMEOUT_SECONDS,
                    )
            except ExpiredError:
                # One page cannot expire under way, however long it is.
                return self._listed(page=None)
            keys += [(item.metadata.annotations or {}).get(KEY_ANNOTATION) for item in found.items]
            more = found.metadata._continue  # noqa: SLF001 - the client's name for `continue`
            if not more:
                return keys

    def acquire(
        self, name: str, holder: str, *, ttl: timedelta, over: Lease | None = None
    ) -> Lease:
        """Take the lease where it is free, or take it over where it still is exactly `over`.

        Raises:
            LeaseHeldError: another holds it, took it at this moment, or renewed it meanwhile.
            ConflictError: another had it at this moment.
        """
        held = self._read_lease(name)
        others = _of_another(name, held, holder)
        if others is not None and (over is None or over.version != others.version):
            raise self._is_held(name, others)
        try:
            return self._put_lease(name, held, holder, ttl)
        except ConflictError as conflict:
            if first := _of_another(name, self._read_lease(name), holder):
                raise self._is_held(name, first) from conflict
            raise

    def _is_held(self, name: str, lease: Lease) -> LeaseHeldError:
        delete = next_command(
            "kubectl", "delete", "lease", object_name(name), "-n", self._namespace
        )
        return LeaseHeldError(
            lease, remedy=f"Wait for it to end. If that holder is certainly gone: {delete}."
        )

    def renew(self, name: str, holder: str, *, ttl: timedelta) -> Lease:
        """Renew the lease that `holder` has.

        Raises:
            ConflictError: it is another's by now, or nobody's.
        """
        with self._renewing:  # of two at once each would take the other for somebody else
            held = self._read_lease(name)
            owner = _owner(held)
            if owner != holder:
                raise ConflictError(
                    f"the lease of {name} is {owner or 'nobody'}'s by now, not {holder}'s"
                )
            return self._put_lease(name, held, holder, ttl)

    def _put_lease(self, name: str, held: Any, holder: str, ttl: timedelta) -> Lease:
        """Write the lease in the place of `held`, as it was read (None: new)."""
        now = self._now()
        seconds = max(1, round(ttl.total_seconds()))
        spec = held.spec if held else None
        renews = _owner(held) == holder
        body: dict[str, Any] = {
            "metadata": {
                "name": object_name(name),
                "labels": _LABELS,
                "annotations": {KEY_ANNOTATION: name},
                "resourceVersion": held.metadata.resource_version if held else None,
            },
            "spec": {
                "holderIdentity": holder,
                "leaseDurationSeconds": seconds,
                "acquireTime": _micro_time(spec.acquire_time if spec and renews else now),
                "renewTime": _micro_time(now),
                "leaseTransitions": _transitions(spec, renews=renews),
            },
        }
        put = self._put("lease", "leases", object_name(name), body, new=held is None, what=name)
        after = "" if renews else _owner(held)
        return Lease(
            name,
            holder,
            now + timedelta(seconds=seconds),
            str(put.metadata.resource_version),
            after,
        )

    def release(self, name: str, holder: str) -> None:
        """Give the lease up if `holder` has it; otherwise do nothing."""
        held = self._read_lease(name)
        if held is None or _owner(held) != holder:
            return
        # The version makes sure that what is deleted is what was just read.
        version = {"preconditions": {"resourceVersion": held.metadata.resource_version}}
        try:
            with self._api.doing("delete", f"leases in namespace {self._namespace}"):
                self._api.coordination.delete_namespaced_lease(
                    object_name(name),
                    self._namespace,
                    body=version,
                    _request_timeout=TIMEOUT_SECONDS,
                )
        except (NotFoundError, ConflictError):
            return

    def _damaged(self, key: str, why: str) -> DeployError:
        return DeployError(
            f"ConfigMap {self._namespace}/{object_name(key)} should hold {key}: {why}",
            remedy="Restore it from a backup, or delete it if what it held may be lost.",
        )

    def _read_lease(self, name: str) -> Any:
        try:
            with self._api.doing("get", f"leases in namespace {self._namespace}"):
                return self._api.coordination.read_namespaced_lease(
                    object_name(name), self._namespace, _request_timeout=TIMEOUT_SECONDS
                )
        except NotFoundError:
            return None

    def _put(
        self, kind: str, resource: str, name: str, body: dict[str, Any], *, new: bool, what: str
    ) -> Any:
        """Create or replace; a conflict is reported in terms of `what` was to be written."""
        group = self._api.coordination if kind == "lease" else self._api.core
        where = f"{resource} in namespace {self._namespace}"
        try:
            if new:
                with self._api.doing("create", where):
                    return getattr(group, f"create_namespaced_{kind}")(
                        self._namespace, body, _request_timeout=TIMEOUT_SECONDS
                    )
            with self._api.doing("update", where):
                return getattr(group, f"replace_namespaced_{kind}")(
                    name, self._namespace, body, _request_timeout=TIMEOUT_SECONDS
                )
        except ConflictError as error:
            raise _written_first(what) from error
        except NotFoundError as error:
            # To create needs the namespace; to replace needs the object, which someone deleted.
            if new:
                raise
            raise _written_first(what) from error


def _written_first(what: str) -> ConflictError:
    return ConflictError(
        f"{what} is not at the version expected: someone else wrote it",
        remedy="Read it again and decide again.",
    )


def _owner(held: Any) -> str:
    """Return the holder of a Lease as it was read; empty where it has none, or does not exist."""
    return str(held.spec.holder_identity or "") if held else ""


def _of_another(name: str, held: Any, holder: str) -> Lease | None:
    return _lease(name, held) if _owner(held) not in ("", holder) else None


def _lease(name: str, found: Any) -> Lease:
    """A Lease as it was read; one that does not say until when has run out, as far as it says."""
    renewed = found.spec.renew_time or datetime.fromtimestamp(0, UTC)
    expires = renewed + timedelta(seconds=found.spec.lease_duration_seconds or 0)
    version = str(found.metadata.resource_version)
    return Lease(name, str(found.spec.holder_identity), expires, version)


def _transitions(spec: Any, *, renews: bool) -> int:
    """Return how often the lease has changed hands, this time included."""
    if spec is None:
        return 0
    return int(spec.lease_transitions or 0) + (0 if renews else 1)


def _micro_time(time: datetime) -> str:
    """RFC 3339 with microseconds, as a Lease's times are written."""
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
