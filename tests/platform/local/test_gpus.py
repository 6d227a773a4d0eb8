"""GPUs of one box: found, shared by all models, and refused before anything changes."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from support.local_release import LocalRelease, tiny

from vllm_rollout.model.deployment import Deployment
from vllm_rollout.model.errors import DeployError, RolloutError, UnreachableError, UsageError
from vllm_rollout.platform.local.gpus import Gpus, find_gpus
from vllm_rollout.platform.local.state import LEAVING, ReplicaRow, open_state

MINUTE = timedelta(minutes=1)

THREE = "0, Disabled\n1, [N/A]\n2, Disabled\n"
"""As `nvidia-smi --query-gpu=index,mig.mode.current --format=csv,noheader` prints it."""


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A stand-in for nvidia-smi, first on PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def install(prints: str, code: int = 0) -> None:
        program = folder / "nvidia-smi"
        program.write_text(f"#!/bin/sh\nprintf '%b' '{prints}'\nexit {code}\n")
        program.chmod(0o755)

    return install


def test_auto_is_what_nvidia_smi_lists(nvidia_smi: Callable[..., None]) -> None:
    nvidia_smi(THREE)
    assert find_gpus("auto") == ("0", "1", "2")
    assert find_gpus(("5", "MIG-a")) == ("5", "MIG-a")
    assert find_gpus(None) == ()


@pytest.mark.parametrize(
    ("prints", "code", "error", "says"),
    [
        ("No devices were found", 6, UnreachableError, "exit code 6: No devices were found"),
        ("", 0, UnreachableError, "it lists none"),
        ("Unable to determine the device handle", 0, UnreachableError, "device handle"),
        ("0, Enabled\n", 0, UsageError, "GPU 0 is divided into MIG instances"),
        ("0, Disabled\n1, [GPU is lost]\n", 0, UnreachableError, "1, .GPU is lost"),
        ("0, Disabled\n0, Disabled\n", 0, UnreachableError, "0, Disabled 0, Disabled"),
        ("\\377\\376", 9, UnreachableError, "exit code 9: \ufffd"),
    ],
)
def test_gpus_that_are_not_known_are_no_pool(
    nvidia_smi: Callable[..., None], prints: str, code: int, error: type[RolloutError], says: str
) -> None:
    nvidia_smi(prints, code)
    with pytest.raises(error, match=says) as caught:
        find_gpus("auto")
    assert "local: {gpus:" in caught.value.remedy


def test_auto_without_nvidia_smi_asks_for_a_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="no nvidia-smi on PATH"):
        find_gpus("auto")


def test_no_gpu_and_no_slot_is_given_twice(tmp_path: Path) -> None:
    state = open_state(tmp_path)
    Gpus(state).fill(("0", "1", "2", "3", "4"))
    state.put_release("r", "m", startup_timeout_seconds=1, max_restarts=1, drain_seconds=1)
    names = [str(number) for number in range(6)]
    for name in names:
        state.put_replica(ReplicaRow(id=name, release="r", name=name, build="b", revision=1))

    def take(name: str) -> tuple[str, ...]:
        seat = Gpus(open_state(tmp_path)).take(name, 2)
        return () if seat is None else (f"slot {seat.slot}", *(seat.gpus or ()))

    with ThreadPoolExecutor(6) as threads:
        taken = [each for seat in threads.map(take, names) for each in seat]

    assert len(taken) == len(set(taken)) == 6
    owner = next(name for name in names if Gpus(state).take(name, 2))
    state.delete_replica(owner)
    assert [bool(Gpus(state).take(name, 2)) for name in names if name != owner].count(True) == 2
    Gpus(state).fill(("9",))
    assert Gpus(state).pool == ("9",)
    assert Gpus(state).take("5", 2) is None
    assert [seat.gpus for count in (0, 1) if (seat := Gpus(state).take("5", count))] == [(), ("9",)]
    Gpus(state).fill(())
    assert [seat.gpus for count in (0, 1) if (seat := Gpus(state).take("4", count))] == [None, None]


def test_models_share_a_box_and_replicas_are_replaced_one_by_one(
    make_release: Callable[..., LocalRelease],
    nvidia_smi: Callable[..., None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nvidia_smi(THREE)
    one = make_release(tmp_path / "state", gpus="auto")
    other = LocalRelease(one.platform, Deployment("qwen-3", "staging"))
    slot = {"env": {"SLOT": "{slot}", "GPU": "{gpu}"}}
    one.apply(tiny("a", **slot), 2, 2)
    other.apply(tiny("x"))

    seen = one.variables("CUDA_VISIBLE_DEVICES", "GPU", "SLOT", "CUDA_DEVICE_ORDER")
    assert seen == {("0", "0", "0", "PCI_BUS_ID"), ("1", "1", "1", "PCI_BUS_ID")}
    assert other.variables("CUDA_VISIBLE_DEVICES") == {("2",)}
    assert one.url != other.url
    assert not {row.name for row in one.rows} & {row.name for row in other.rows}
    assert len({row.port for row in (*one.rows, *other.rows)}) == 3

    nvidia_smi("0, GPU-a, 25, 1024, 4096\n1, GPU-b, 75, 2048, 4096\n2, GPU-c, [N/A], 0, 9\n")
    used = one.platform.usage(one.deployment)
    assert {gpus: r.gpu_memory_bytes for r in used.replicas.values() for gpus in r.gpu_use} == {
        0.25: 2**30,
        0.75: 2**31,
    }
    assert all(r.memory_bytes and r.cpu_seconds for r in used.replicas.values())
    assert "no GPU '2', or not its figures" in other.platform.usage(other.deployment).gpus_unknown
    nvidia_smi(THREE)

    before = one.pids()
    with pytest.raises(DeployError, match="no free GPU: 2 replicas need 3 GPUs") as caught:
        one.apply(tiny("b"), 2, 2)
    assert "system.qwen-3-staging has 1" in str(caught.value)
    facts = one.platform.preflight(one.deployment, tiny("b"), capacity=2)
    assert facts is not None
    assert str(facts.room()) in str(caught.value)
    assert (one.pids(), one.statuses) == (before, ["deployed"])

    facts = one.platform.preflight(one.deployment.canary, tiny("b"), capacity=2)
    assert facts is not None
    assert str(facts.room()).startswith("2 replicas need 3 GPUs (1 of them")
    assert "system.llama-2-7b-staging has 2" in str(facts.room())

    (row,) = other.rows
    one.platform._state.put_replica(replace(row, phase=LEAVING))
    facts = one.platform.preflight(one.deployment, tiny("b"), capacity=2)
    assert facts is not None
    assert facts.room().held == {other.key: 1}, "what is to be there counts, as long as it is"
    one.platform._state.desire(other.key, None)
    facts = one.platform.preflight(one.deployment, tiny("b"), capacity=2)
    assert facts is not None
    assert facts.room().held == {}, "those that leave are waited for"
    other.platform.uninstall(other.deployment, timeout=one.platform._startup_timeout)
    with one.clients() as wrong:
        one.apply(tiny("b"), 2, 2)

    assert wrong == []
    assert one.served(4) == {"b": 4}
    given = one.variables("CUDA_VISIBLE_DEVICES")
    assert len(given) == 2
    assert given < {("0",), ("1",), ("2",)}

    nvidia_smi("Unable to determine the device handle", 15)
    with pytest.raises(UnreachableError):
        one.apply(tiny("c"), 2, 2)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    back = one.platform.rollback(one.deployment, 1, description="test", timeout=MINUTE)
    assert (back.number, one.served(2)) == (3, {"a": 2})


def test_a_placeholder_for_a_gpu_needs_a_pool(release: LocalRelease) -> None:
    with pytest.raises(UsageError, match=r"\{gpu\} is in them") as caught:
        release.apply(tiny("a", env={"HIP_VISIBLE_DEVICES": "{gpu}"}))
    assert "gpus: auto" in caught.value.remedy
    assert release.statuses == []
