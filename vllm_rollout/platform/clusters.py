"""Environments in clusters or namespaces of their own, as one platform."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from functools import cached_property, partial
from typing import Any, cast

from vllm_rollout.platform.base import Entry, Lease
from vllm_rollout.platform.reader import EnvironmentHomes
from vllm_rollout.platform.writer import Guard, ReleaseWriter, Store

_FOUND_EARLIER = ("evidence/", "gate-runs/", "signatures/", "passed/")
_WITH_ITS_RELEASE = "soak/"


class Clusters(EnvironmentHomes):
    """The `ReleaseWriter` of several: `platforms` has that of each environment, in order.

    A run reads and changes each deployment where its environment is. Its lease, journal, audit
    log and evidence are kept where the environment `home` is, which it changes.
    """

    def __init__(self, platforms: Mapping[str, ReleaseWriter], home: str) -> None:
        self._platforms = platforms
        self._home = home
        self.name = platforms[home].name

    def at_home(self, environment: str) -> ReleaseWriter:
        """The same, for a run that changes `environment`."""
        return as_writer(Clusters(self._platforms, environment))

    @cached_property
    def store(self) -> "JoinedStore":
        """The store of `home`, in which what earlier environments have passed is found, too."""
        names = list(self._platforms)
        return JoinedStore(
            {name: partial(self._store_of, name) for name in names},
            home=self._home,
            earlier=names[: names.index(self._home)],
        )

    def _store_of(self, environment: str) -> Store:
        return self._platforms[environment].store

    def guard(self, guard: Guard) -> None:
        """As the writer has it: of each platform."""
        for platform in self._platforms.values():
            platform.guard(guard)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        """The method of that name, of the platform of the deployment's environment."""
        if not hasattr(ReleaseWriter, name):
            raise AttributeError(name)

        def ask(deployment: Any, *more: Any, **named: Any) -> Any:
            return getattr(self._platforms[deployment.environment], name)(
                deployment, *more, **named
            )

        return ask


def as_writer(clusters: Clusters) -> ReleaseWriter:
    """`clusters` by its type: its methods are those of the platforms."""
    return cast("ReleaseWriter", clusters)


class JoinedStore:
    """The store of `home`, by the stores of all environments.

    Evidence and passed revisions that it lacks are read from those of `earlier` environments, and
    never written there. Soak samples are kept with their release.
    """

    def __init__(
        self, stores: Mapping[str, Callable[[], Store]], *, home: str, earlier: Sequence[str]
    ) -> None:
        self._stores = stores
        self._home = stores[home]
        self._earlier = [stores[name] for name in earlier]
        self._elsewhere: set[str] = set()

    def read(self, key: str) -> Entry | None:
        """Return the entry, or None."""
        store = self._store_of(key)
        entry = store.read(key)
        self._elsewhere.discard(key)
        if entry is None and key.startswith(_FOUND_EARLIER):
            entry = next(filter(None, (other.read(key) for other in self._others(store))), None)
            if entry is not None:
                self._elsewhere.add(key)
        return entry

    def write(self, key: str, value: Any, *, expect: str | None) -> str:
        """Write `value` at home; what was read elsewhere is new there. As the writer's store."""
        known = None if key in self._elsewhere else expect
        version = self._store_of(key).write(key, value, expect=known)
        self._elsewhere.discard(key)
        return version

    def keys(self, prefix: str) -> list[str]:
        """Return all keys that begin with `prefix`, sorted: of earlier environments, too."""
        home = self._home()
        found = set(home.keys(prefix))
        return sorted(found.union(*(other.keys(prefix) for other in self._others(home))))

    def acquire(
        self, name: str, holder: str, *, ttl: timedelta, over: Lease | None = None
    ) -> Lease:
        """As the writer's store, at home."""
        return self._home().acquire(name, holder, ttl=ttl, over=over)

    def renew(self, name: str, holder: str, *, ttl: timedelta) -> Lease:
        """As the writer's store, at home."""
        return self._home().renew(name, holder, ttl=ttl)

    def release(self, name: str, holder: str) -> None:
        """As the writer's store, at home."""
        self._home().release(name, holder)

    def _store_of(self, key: str) -> Store:
        if not key.startswith(_WITH_ITS_RELEASE):
            return self._home()
        release = key.split("/")[1]
        named = [name for name in self._stores if release.endswith(f"-{name}")]
        return self._stores[max(named, key=len)]() if named else self._home()

    def _others(self, store: Store) -> Iterable[Store]:
        """The stores of earlier environments, each once, without `store` itself."""
        others = {id(each): each for each in (other() for other in self._earlier)}
        others.pop(id(store), None)
        return others.values()
