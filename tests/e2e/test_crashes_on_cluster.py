"""SIGKILL and SIGSTOP at journal writes and changes, on a real API server.

Once for each kind of call, and in the middle of Helm; at every call, with both Helms, in
`make test-exhaustive`. What comes right after one call comes right before the next: each cell is
both. Each test goes on from where the last one left the release: one namespace for each Helm and
way of ramping.
"""

import os
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, suppress
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from cluster.behaviour import HEALTHY
from cluster.fixtures import Cluster, Namespace, eventually, namespace_of
from cluster.gateway import running_gateway
from cluster.required import required_tool
from support.real_runs import BAD, GOOD, GOOD_BY_TRAFFIC, Run, Runs, Stop, When, cells

from vllm_rollout.model.deployment import Deployment, RevisionStatus
from vllm_rollout.model.errors import ExitCode
from vllm_rollout.platform.kubernetes.platform import KubernetesPlatform
from vllm_rollout.rollout.audit_log import AuditLog
from vllm_rollout.rollout.journal import Journal

pytestmark = pytest.mark.timeout(900)

MODEL = "llama-2-7b"


BY_TRAFFIC = " by traffic"


def at_site(site: str, *values: Any, marks: Iterable[Any] = ()) -> Any:
    """Parameters of a test at a site, which comes first in its id."""
    return pytest.param(site, *values, marks=[*marks])


def under_both_helms(cells: Iterable[Any], *, by: str = "") -> list[Any]:
    """The cells with Helm 4, and all of them with Helm 3 for `make test-exhaustive`."""
    return [
        at_site(f"{helm}{by}", *cell.values, marks=marks or cell.marks)
        for cell in cells
        for helm, marks in (("helm4", ()), ("helm3", [pytest.mark.exhaustive]))
    ]


class Site:
    """Runs in a namespace of their own; every build that is rolled out is a new one."""

    def __init__(
        self, namespace: Namespace, helm: str, folder: Path, *, by_traffic: bool = False
    ) -> None:
        self.namespace, self.version = namespace, 0
        self.target = Deployment(MODEL, "production", namespace.name)

        def connect() -> KubernetesPlatform:
            return namespace.platform(
                helm,
                service_url="http://{model}-{environment}.{namespace}:8000",
                surge=2,  # room for each step in one move
            )

        self.runs = Runs(connect, self.target, made_of, folder, by_traffic)
        run = self.runs.finish(self.new())
        assert run.wait() == ExitCode.OK, run.said
        self.serves = self.version

    def new(self) -> int:
        """The next build's version."""
        self.version += 1
        return self.version

    def statuses(self) -> set[str]:
        """What Helm has written of its revisions."""
        secrets = self.namespace.list("secrets")
        return {each["metadata"].get("labels", {}).get("status", "") for each in secrets}

    def at_rest(self, version: int) -> None:
        """All of production runs that build, nothing is half done, and the decisions are whole."""
        platform = self.runs.connect()
        entry = Journal(platform.store, MODEL).read()
        assert entry is not None
        assert not entry.unfinished
        assert AuditLog(platform.store).verify(MODEL) == []
        history = platform.history(self.target)
        assert history[-1].status is RevisionStatus.DEPLOYED
        assert [r.status for r in history].count(RevisionStatus.DEPLOYED) == 1
        replicas = platform.replicas(self.target)
        assert [replica.ready for replica in replicas] == [True, True]
        digest = platform.build(self.target, made_of(version)).digest
        assert {replica.build for replica in replicas} == {digest}
        if self.runs.by_traffic:
            assert platform.weights(self.target).canary_share == 0
            assert platform.history(self.target.canary) == []
        self.serves = version


def made_of(version: int) -> dict[str, object]:
    """Its image is named by digest: what stands in for staging runs none to compare with."""
    image = {"digest": "sha256:" + "5" * 64}
    return {"model": {"name": MODEL, "revision": f"v{version}"}, "image": image}


@pytest.fixture(scope="module")
def sites(
    cluster: Cluster, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], Site]]:
    """The site of each Helm and way of ramping, made when it is first asked for."""
    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())

        @cache
        def site(name: str) -> Site:
            helm, by_traffic, _ = name.partition(BY_TRAFFIC)
            namespace = stack.enter_context(namespace_of(cluster, f"test-{secrets.token_hex(4)}"))
            namespace.behave(HEALTHY)
            if by_traffic:
                gateway = stack.enter_context(running_gateway(namespace))
                gateway.add_route(f"{MODEL}-production")
                gateway.accept()
            patch.setenv("KUBECONFIG", str(namespace.kubeconfig))
            folder = tmp_path_factory.mktemp(helm)
            return Site(namespace, required_tool(helm), folder, by_traffic=bool(by_traffic))

        yield site


@pytest.fixture
def site(
    request: pytest.FixtureRequest,
    sites: Callable[[str], Site],
    monkeypatch: pytest.MonkeyPatch,
) -> Site:
    site = sites(request.param)
    monkeypatch.setenv("KUBECONFIG", str(site.namespace.kubeconfig))
    return site


@pytest.mark.parametrize(
    ("site", "at", "when"),
    [
        *under_both_helms(cells(GOOD)),
        *under_both_helms(cells(GOOD_BY_TRAFFIC, besides=GOOD)[:-3], by=BY_TRAFFIC),
    ],
    indirect=["site"],
)
def test_a_killed_rollout_is_finished_by_the_next_run(site: Site, at: int, when: When) -> None:
    version = site.new()
    killed = site.runs.start(version, stop=Stop(at, when))
    assert killed.wait() == -signal.SIGKILL, killed.said

    run = site.runs.finish(version)

    assert run.wait() == ExitCode.OK, run.said
    site.at_rest(version)


@pytest.mark.parametrize(
    ("site", "at", "when"), under_both_helms(cells(BAD, start=6, besides=GOOD)), indirect=["site"]
)
def test_a_killed_rollback_is_finished_by_the_next_run(site: Site, at: int, when: When) -> None:
    version, before = site.new(), site.serves
    killed = site.runs.start(version, bad=True, stop=Stop(at, when))
    assert killed.wait() == -signal.SIGKILL, killed.said

    run = site.runs.finish(version, bad=True)

    # Gated again, or held for the rollback that was decided.
    assert run.wait() in (ExitCode.ROLLED_BACK, ExitCode.INCONCLUSIVE), run.said
    site.at_rest(before)


@pytest.mark.parametrize(
    ("site", "more"),
    [at_site("helm3", 0), at_site("helm4", 1), at_site("helm4", 2)],
    indirect=["site"],
)
def test_a_run_killed_while_helm_works_is_finished_by_the_next(site: Site, more: int) -> None:
    """The run alone; its supervisor too, so that nobody ends Helm; Helm as well, a power cut."""
    version = site.new()
    killed = site.runs.start(version)
    children = helm_of(killed)
    if more == 2:
        eventually(lambda: "pending-upgrade" in site.statuses())
    for child in children[:more]:
        os.kill(child, signal.SIGKILL)
    os.kill(killed.pid, signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL

    run = site.runs.finish(version)

    assert run.wait() == ExitCode.OK, run.said
    if more == 2:
        assert "was left pending-upgrade since" in run.said
        assert f"the lease was {socket.gethostname()}:{killed.pid}:" in run.said
    site.at_rest(version)


def helm_of(run: Run) -> list[int]:
    """The lease supervisor of a Helm upgrade that the run has begun, and that Helm."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        for supervisor in children_of(run.pid):
            helm = children_of(supervisor)
            with suppress(OSError):  # another of its commands, which has ended
                if b"\0upgrade\0" in Path(f"/proc/{supervisor}/cmdline").read_bytes() and helm:
                    return [supervisor, *helm]
        time.sleep(0.01)
    raise AssertionError(f"no helm upgrade: {run.said}")


def children_of(pid: int) -> list[int]:
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True)
    return [int(line) for line in found.stdout.split()]


@pytest.mark.parametrize(("site", "at", "when"), [at_site("helm4", 4, "before")], indirect=["site"])
def test_who_was_frozen_until_another_took_over_changes_nothing_when_it_wakes(
    site: Site, at: int, when: When
) -> None:
    version = site.new()
    stop = Stop(at, when, signal.SIGSTOP)
    frozen = site.runs.start(version, stop=stop)
    frozen.wait_until_frozen()
    other = site.runs.finish(version)
    assert other.wait() == ExitCode.OK, other.said
    before = site.runs.connect().history(site.target)

    frozen.thaw()

    assert frozen.wait() == ExitCode.INCONCLUSIVE, frozen.said
    assert "nothing more is changed by this run" in frozen.said
    assert site.runs.connect().history(site.target) == before
    site.at_rest(version)


@pytest.mark.parametrize("site", [at_site("helm4")], indirect=True)
def test_who_was_frozen_while_helm_worked_finds_it_ended_and_changes_nothing(site: Site) -> None:
    version = site.new()
    frozen = site.runs.start(version)
    helm_of(frozen)
    os.kill(frozen.pid, signal.SIGSTOP)
    frozen.wait_until_frozen()
    other = site.runs.finish(version)
    assert other.wait() == ExitCode.OK, other.said
    before = site.runs.connect().history(site.target)

    frozen.thaw()

    assert frozen.wait() == ExitCode.INCONCLUSIVE, frozen.said
    assert site.runs.connect().history(site.target) == before
    site.at_rest(version)


@pytest.mark.parametrize("site", [at_site("helm4")], indirect=True)
def test_of_two_at_once_one_goes_on_and_the_other_says_who_it_is(site: Site) -> None:
    version = site.new()
    both = [site.runs.start(version), site.runs.start(version)]

    codes = [run.wait() for run in both]

    assert sorted(codes) in ([ExitCode.OK, ExitCode.INCONCLUSIVE], [ExitCode.OK, ExitCode.OK])
    for run, code in zip(both, codes, strict=True):
        if code == ExitCode.INCONCLUSIVE:
            assert "is being changed by" in run.said
    site.at_rest(version)
