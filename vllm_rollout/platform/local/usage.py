"""Resources that replicas' processes use: by /proc, and the GPUs by nvidia-smi."""

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import replace

import psutil

from vllm_rollout.model.live_figures import ReplicaUsage, Usage
from vllm_rollout.model.text import one_line
from vllm_rollout.platform.local.processes import carrying
from vllm_rollout.platform.local.store import utc_now
from vllm_rollout.platform.local.values import Seat

SOURCE = "processes of this machine"
_GPU_SOURCE = "nvidia-smi"
_QUESTION = (
    "nvidia-smi",
    "--query-gpu=index,uuid,utilization.gpu,memory.used,memory.total",
    "--format=csv,noheader,nounits",
)
_SECONDS = 10.0
_SAID_CHARACTERS = 200
_MIB = 2.0**20
_NETWORK = "processes of one machine share its network"
_NO_GPUS = "no GPUs are given to replicas (`local.gpus` in the policy)"

Gpu = tuple[float, float, float]
"""Use (a share), used and whole memory in bytes."""


def local_usage(replicas: Mapping[str, str], seats: Mapping[str, Seat | None]) -> Usage:
    """Return what replicas use, whose ids and seats are given by name. Does not raise."""
    found = {name: _processes(replica_id) for name, replica_id in replicas.items()}
    usage = Usage(
        source=SOURCE,
        replicas=found,
        gpu_source=_GPU_SOURCE,
        gpus_unknown=_NO_GPUS,
        network_unknown=_NETWORK,
    )
    given = {name: seat.gpus for name, seat in seats.items() if seat and seat.gpus}
    if not given:
        return usage
    try:
        gpus = _gpus()
        own = {name: [gpus[device] for device in devices] for name, devices in given.items()}
    except (OSError, subprocess.SubprocessError) as error:
        return replace(usage, gpus_unknown=f"nvidia-smi: {error}")
    except KeyError as error:
        return replace(usage, gpus_unknown=f"nvidia-smi has no GPU {error}, or not its figures")
    with_gpus = {name: _with_gpus(each, own.get(name, [])) for name, each in found.items()}
    return replace(usage, replicas=with_gpus, gpus_unknown="")


def _processes(replica_id: str) -> ReplicaUsage:
    """Return CPU time and memory of all processes of a replica; nothing where one is not known.

    A page that several of them share is counted once among them.
    """
    at = utc_now()
    processes = carrying(replica_id)
    seconds = memory = 0.0
    try:
        for process in processes:
            times, used = process.cpu_times(), process.memory_full_info()
            # What ended children used is their parent's, once it has waited for them.
            seconds += times.user + times.system + times.children_user + times.children_system
            memory += getattr(used, "pss", used.rss)
    except psutil.Error:
        return ReplicaUsage(at=at)
    if not processes:
        return ReplicaUsage(at=at)
    return ReplicaUsage(at=at, cpu_seconds=seconds, memory_bytes=memory)


def _with_gpus(usage: ReplicaUsage, gpus: Sequence[Gpu]) -> ReplicaUsage:
    return replace(
        usage,
        gpu_use=tuple(use for use, _, _ in gpus),
        gpu_memory_bytes=sum(used for _, used, _ in gpus) if gpus else None,
        gpu_memory_total_bytes=sum(whole for _, _, whole in gpus) if gpus else None,
    )


def _gpus() -> dict[str, Gpu]:
    """Return each GPU by its index and by its UUID; one that says no figures is not there.

    Raises:
        OSError, subprocess.SubprocessError: nvidia-smi does not answer, or fails.
    """
    answer = subprocess.run(  # noqa: S603 - no shell, a fixed command
        _QUESTION, capture_output=True, timeout=_SECONDS, check=False
    )
    if answer.returncode:
        said = one_line((answer.stderr or answer.stdout).decode(errors="replace"))
        raise OSError(f"exit code {answer.returncode}: {said[:_SAID_CHARACTERS]}")
    found: dict[str, Gpu] = {}
    for line in answer.stdout.decode(errors="replace").splitlines():
        try:
            index, uuid, *figures = (each.strip() for each in line.split(","))
            use, used, whole = map(float, figures)
        except ValueError:  # of other words, and of "[N/A]"
            continue
        found[index] = found[uuid] = (use / 100, used * _MIB, whole * _MIB)
    return found
