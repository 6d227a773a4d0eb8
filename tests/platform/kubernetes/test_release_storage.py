"""Where Helm keeps a release's revisions: chosen once, and known to have had some."""

import pytest
from support.simulated import FakeClock, MemoryStore

from vllm_rollout.model.errors import DeployError, UsageError
from vllm_rollout.platform.kubernetes.release_storage import ReleaseStorage

RELEASE = "llama-2-7b-production"


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore(FakeClock())


def storage(store: MemoryStore) -> ReleaseStorage:
    """As another run has it."""
    return ReleaseStorage(lambda: store)


def test_the_first_deploy_chooses_the_driver_for_good(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HELM_DRIVER", "configmaps")
    assert storage(store).expected(RELEASE) is None
    storage(store).begin(RELEASE, lambda: 0)
    assert storage(store).expected(RELEASE) == ""
    storage(store).made(RELEASE, lambda: 1)

    monkeypatch.delenv("HELM_DRIVER")
    later = storage(store)
    later.begin(RELEASE, lambda: 1)
    assert (later.driver(RELEASE), later.driver("another")) == ("configmap", "secret")
    assert later.expected(RELEASE) == "revision 1, by Helm's driver configmap"


def test_after_an_uninstall_the_next_deploy_chooses_again(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = storage(store)
    run.begin(RELEASE, lambda: 0)
    run.made(RELEASE, lambda: 4)
    run.forget(RELEASE)
    monkeypatch.setenv("HELM_DRIVER", "sql")

    # Not while the old history may still be there: the uninstall was killed.
    run.begin(RELEASE, lambda: 4)
    assert (run.driver(RELEASE), run.expected(RELEASE)) == ("secret", "")
    run.begin(RELEASE, lambda: 0)
    assert run.driver(RELEASE) == "sql"


def test_an_uninstall_is_known_of_a_release_of_an_earlier_version(store: MemoryStore) -> None:
    storage(store).forget(RELEASE)
    assert storage(store).expected(RELEASE) == ""


@pytest.mark.parametrize("driver", ["memory", "confgmap"])
def test_a_driver_that_keeps_nothing_is_refused(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch, driver: str
) -> None:
    monkeypatch.setenv("HELM_DRIVER", driver)
    with pytest.raises(UsageError, match=f"HELM_DRIVER={driver}"):
        storage(store).driver(RELEASE)


def test_a_record_that_was_edited_is_no_choice(store: MemoryStore) -> None:
    store.write(f"helm/{RELEASE}", {"revision": 3}, expect=None)
    with pytest.raises(DeployError, match="cannot be read"):
        storage(store).driver(RELEASE)
