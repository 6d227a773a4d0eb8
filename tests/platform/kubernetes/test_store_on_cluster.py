"""Documents and leases in a real API server: compare-and-set, expiry, and what can go wrong."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from threading import Barrier

import pytest
from cluster.faulty import FaultyDoor, Refusal
from cluster.fixtures import Namespace

from vllm_rollout.model.errors import DeployError, ExitCode, UnreachableError
from vllm_rollout.platform.base import ConflictError, LeaseHeldError
from vllm_rollout.platform.kubernetes import store as store_module
from vllm_rollout.platform.kubernetes.api import connect
from vllm_rollout.platform.kubernetes.store import KubernetesStore, utc_now

MINUTE = timedelta(minutes=1)


@pytest.fixture
def store(namespace: Namespace) -> KubernetesStore:
    return KubernetesStore(connect(None), namespace.name)


def through(door: FaultyDoor, namespace: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on, the cluster is reached by `door`."""
    control_plane = namespace.cluster.control_plane
    path = control_plane.kubeconfig("door", server=door.url, namespace=namespace.name)
    monkeypatch.setenv("KUBECONFIG", str(path))


def test_of_two_writers_one_is_told_that_the_other_was_first(store: KubernetesStore) -> None:
    assert store.read("evidence/a") is None
    first = store.write("evidence/a", {"n": 1}, expect=None)
    with pytest.raises(ConflictError):
        store.write("evidence/a", {"n": 2}, expect=None)
    second = store.write("evidence/a", {"n": 3}, expect=first)
    with pytest.raises(ConflictError):
        store.write("evidence/a", {"n": 4}, expect=first)
    with pytest.raises(ConflictError):
        store.write("evidence/b", {}, expect=first)
    entry = store.read("evidence/a")
    assert entry is not None
    assert (entry.value, entry.version) == ({"n": 3}, second)


def test_keys_are_found_over_all_pages(
    store: KubernetesStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "_PAGE", 2)
    keys = [f"evidence/llama/{n} ü" for n in range(5)]
    for key in [*keys, "journal/llama"]:
        store.write(key, {}, expect=None)
    assert store.keys("evidence/") == keys


def test_a_lease_is_one_holders_whatever_the_clocks_say(namespace: Namespace) -> None:
    now = utc_now()
    ours = KubernetesStore(connect(None), namespace.name, now=lambda: now)
    later = KubernetesStore(connect(None), namespace.name, now=lambda: now + 60 * MINUTE)
    first = ours.acquire("llama", "us", ttl=MINUTE)
    assert first.expires == now + MINUTE
    with pytest.raises(LeaseHeldError, match="is being changed by us") as held:
        later.acquire("llama", "them", ttl=MINUTE)
    assert held.value.lease == first
    later.release("llama", "them")
    a_moment_on = KubernetesStore(connect(None), namespace.name, now=lambda: now + MINUTE / 6)
    a_moment_on.renew("llama", "us", ttl=MINUTE)
    with pytest.raises(LeaseHeldError) as held:
        later.acquire("llama", "them", ttl=MINUTE, over=first)

    assert later.acquire("llama", "them", ttl=MINUTE, over=held.value.lease).after == "us"
    with pytest.raises(ConflictError, match="is them's by now"):
        ours.renew("llama", "us", ttl=MINUTE)
    later.release("llama", "them")
    with pytest.raises(ConflictError, match="is nobody's by now"):
        ours.renew("llama", "us", ttl=MINUTE)
    ours.acquire("llama", "us", ttl=MINUTE)


def test_of_two_who_take_a_lease_at_once_one_is_told_who_the_other_is(
    store: KubernetesStore,
) -> None:
    for turn in range(5):
        both = Barrier(2)

        def take(holder: str, name: str = f"llama-{turn}", both: Barrier = both) -> str:
            both.wait()
            try:
                store.acquire(name, holder, ttl=MINUTE)
            except LeaseHeldError as error:
                return error.lease.holder
            return ""

        with ThreadPoolExecutor(2) as pool:
            assert sorted(pool.map(take, ("us", "them"))) in (["", "us"], ["", "them"])


def test_two_threads_of_a_holder_do_not_take_each_other_for_somebody_else(
    store: KubernetesStore,
) -> None:
    store.acquire("llama", "us", ttl=MINUTE)
    with ThreadPoolExecutor(2) as pool:
        renewed = list(pool.map(lambda _: store.renew("llama", "us", ttl=MINUTE), range(20)))
    assert {lease.holder for lease in renewed} == {"us"}


def test_what_does_not_fit_or_was_edited_is_refused(
    store: KubernetesStore, namespace: Namespace
) -> None:
    with pytest.raises(DeployError, match="a ConfigMap holds"):
        store.write("evidence/large", "x" * 1_100_000, expect=None)
    store.write("evidence/edited", {}, expect=None)
    name = store_module.object_name("evidence/edited")
    path = f"/api/v1/namespaces/{namespace.name}/configmaps/{name}"
    namespace.cluster.send("PATCH", path, {"data": {"value.json": "{"}}).raise_for_status()
    with pytest.raises(DeployError, match="should hold evidence/edited"):
        store.read("evidence/edited")


def test_a_listing_that_expired_between_two_pages_begins_anew(
    namespace: Namespace, store: KubernetesStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "_PAGE", 2)
    for n in range(5):
        store.write(f"evidence/{n}", {}, expect=None)
    expired: list[str] = []

    def refuse(method: str, path: str) -> Refusal | None:
        if "continue=" in path and not expired:
            expired.append(path)
            return 410, {}
        return None

    with FaultyDoor(namespace.cluster, refuse) as door:
        through(door, namespace, monkeypatch)
        keys = KubernetesStore(connect(None), namespace.name).keys("evidence/")
    assert keys == [f"evidence/{n}" for n in range(5)]
    assert expired


def test_an_overloaded_server_is_asked_again_when_it_says_so(
    namespace: Namespace, store: KubernetesStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.write("evidence/a", 1, expect=None)
    busy = [(429, {"Retry-After": "0"})] * 2

    with FaultyDoor(namespace.cluster, lambda *_: busy.pop() if busy else None) as door:
        through(door, namespace, monkeypatch)
        entry = KubernetesStore(connect(None), namespace.name).read("evidence/a")
    assert entry is not None
    assert not busy

    creating = [(429, {"Retry-After": "0"})]

    def refuse(method: str, _path: str) -> Refusal | None:
        return creating.pop() if method == "POST" and creating else None

    with FaultyDoor(namespace.cluster, refuse) as door:
        through(door, namespace, monkeypatch)
        KubernetesStore(connect(None), namespace.name).write("evidence/b", 2, expect=None)
    assert not creating

    with FaultyDoor(namespace.cluster, lambda *_: (429, {"Retry-After": "0"})) as door:
        through(door, namespace, monkeypatch)
        with pytest.raises(UnreachableError) as caught:
            KubernetesStore(connect(None), namespace.name).read("evidence/a")
    assert caught.value.exit_code == ExitCode.UNREACHABLE
    assert door.url in caught.value.address


def test_an_api_server_that_is_away_is_named_and_is_used_again_when_it_is_back(
    namespace: Namespace, store: KubernetesStore
) -> None:
    store.write("evidence/a", 1, expect=None)
    control_plane = namespace.cluster.control_plane
    control_plane.stop_api_server()
    try:
        with pytest.raises(UnreachableError, match="does not answer") as caught:
            store.read("evidence/a")
        assert caught.value.address == control_plane.url
    finally:
        control_plane.start_api_server()
    entry = store.read("evidence/a")
    assert entry is not None
    assert entry.value == 1


@pytest.mark.parametrize(
    ("token", "said"), [("expired", "log in again"), ("", "verb 'get' on 'configmaps")]
)
def test_credentials_that_do_not_suffice_say_what_is_missing(
    namespace: Namespace, monkeypatch: pytest.MonkeyPatch, token: str, said: str
) -> None:
    control_plane = namespace.cluster.control_plane
    path = control_plane.kubeconfig("poor", token=token or namespace.token("default"))
    monkeypatch.setenv("KUBECONFIG", str(path))
    with pytest.raises(UnreachableError) as caught:
        KubernetesStore(connect(None), namespace.name).read("evidence/a")
    assert said in caught.value.remedy
