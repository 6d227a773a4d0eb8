"""Figures of what replicas use of CPU, memory and GPUs, as their platform knows it."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from vllm_rollout.model.live_figures import Figure, FigureName, ReplicaUsage, Usage
from vllm_rollout.model.units import of_total
from vllm_rollout.observe.server_figures import NotKnownError, known_or_not

_OLDEST_USAGE = timedelta(minutes=5)


def usage_figures(
    every: Sequence[str], needed: Collection[str], before: Usage, now: Usage, at: datetime
) -> dict[FigureName, Figure]:
    """Return the figures of what replicas use at a time, of which those `needed` must be known.

    CPU time is that between the two readings.
    """

    def summed(
        what: str, source: str, amount: Callable[[str, ReplicaUsage], float | None]
    ) -> Figure:
        amounts: dict[str, float] = {}
        for name in every:
            usage = now.replicas.get(name)
            value = amount(name, usage) if usage else None
            if value is not None:
                amounts[name] = value
            elif name in needed:
                raise NotKnownError(f"{source} has no {what} of {name}")
        if not amounts:
            raise NotKnownError(f"{source} has no {what} of any replica")
        oldest = min(now.replicas[name].at for name in amounts)
        if at - oldest > _OLDEST_USAGE:
            raise NotKnownError(f"{source} has nothing newer than {oldest:%H:%M:%S %Z}")
        part = f", {of_total(len(amounts), len(every), 'replica')}" * (len(amounts) < len(every))
        return Figure(value=sum(amounts.values()), source=source + part, at=oldest)

    def cores(name: str, usage: ReplicaUsage) -> float | None:
        earlier = before.replicas.get(name)
        if usage.cpu_cores is not None or usage.cpu_seconds is None:
            return usage.cpu_cores
        if earlier is None or earlier.cpu_seconds is None:
            return None
        used, passed = usage.cpu_seconds - earlier.cpu_seconds, usage.at - earlier.at
        return used / passed.total_seconds() if used >= 0 and passed > timedelta() else None

    def gpu_use() -> Figure:
        shares = [use for name in every if (u := now.replicas.get(name)) for use in u.gpu_use]
        found = summed(
            "GPU use",
            now.gpu_source,
            lambda _, usage: sum(usage.gpu_use) if usage.gpu_use else None,
        )
        return replace(found, value=(found.value or 0.0) / len(shares))

    def gpu_memory() -> Figure:
        whole = summed(
            "GPU memory", now.gpu_source, lambda _, usage: usage.gpu_memory_total_bytes
        ).value
        found = summed("GPU memory", now.gpu_source, lambda _, usage: usage.gpu_memory_bytes)
        return replace(found, of=whole)

    unknown = Figure(unknown=f"{now.source}: {now.unknown}") if now.unknown else None
    gpus_unknown = Figure(unknown=now.gpus_unknown) if now.gpus_unknown else None
    found = {
        FigureName.CPU: unknown or known_or_not(lambda: summed("CPU time", now.source, cores)),
        FigureName.MEMORY: unknown
        or known_or_not(lambda: summed("memory", now.source, lambda _, u: u.memory_bytes)),
        FigureName.GPU_USE: gpus_unknown or known_or_not(gpu_use),
        FigureName.GPU_MEMORY: gpus_unknown or known_or_not(gpu_memory),
    }
    if now.network_unknown:
        network = Figure(unknown=now.network_unknown)
        found |= {FigureName.NETWORK_IN: network, FigureName.NETWORK_OUT: network}
    return found
