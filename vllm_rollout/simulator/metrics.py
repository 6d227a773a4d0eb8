"""The metrics vLLM 0.32 exports, by its names, labels and buckets.

Nothing here counts failures: as in vLLM, `request_success` holds successes only and an aborted
request leaves no trace but its first token.
"""

from collections.abc import Callable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from vllm_rollout.simulator.engine import Engine, Sequence

KV_CACHE_TOKENS = 524_288

_TOKEN_COUNTS = (1, 2, 5, 10, 20, 50, 100, 200)
# fmt: off
_REQUEST_SECONDS = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0,
    120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0,
)
_TTFT_SECONDS = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5,
    10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
)
_GAP_SECONDS = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5,
    10.0, 20.0, 40.0, 80.0,
)
# fmt: on
_STEP_TOKENS = (1, *(2**power for power in range(3, 15)))

# Label values of `cache_config_info`; the recorded server's, but for what the simulator sets.
_CACHE_CONFIG = {
    "_block_size_resolved": "True",
    "block_size": "128",
    "cache_dtype": "auto",
    "cache_hit_alignment_tokens": "None",
    "effective_attention_block_size": "128",
    "enable_mamba_shared_prefix_checkpoint": "False",
    "enable_prefix_caching": "True",
    "gpu_memory_utilization": "0.92",
    "hash_block_size": "None",
    "is_attention_free": "False",
    "kv_cache_dtype_skip_layers": "[]",
    "kv_cache_layout": "None",
    "kv_cache_max_concurrency": "2048.0",
    "kv_cache_memory_bytes": "1073741824",
    "kv_cache_size_tokens": str(KV_CACHE_TOKENS),
    "kv_offloading_backend": "native",
    "kv_offloading_size": "None",
    "kv_sharing_fast_prefill": "False",
    "mamba_block_size": "None",
    "mamba_cache_dtype": "auto",
    "mamba_cache_mode": "none",
    "mamba_page_size_padded": "None",
    "mamba_ssm_cache_dtype": "float32",
    "num_cpu_blocks": "None",
    "num_gpu_blocks": "4096",
    "num_gpu_blocks_override": "None",
    "prefix_cache_retention_interval": "0",
    "prefix_caching_hash_algo": "sha256",
    "prefix_match_unit": "None",
    "replayssm_buffer_len": "16",
    "skip_page_size_padded": "None",
    "sliding_window": "None",
    "swa_bounded_replay": "True",
    "use_kda_recoverssm": "False",
    "use_replayssm": "False",
    "user_specified_block_size": "False",
}

# Counters that stay at zero here.
_STILL_COUNTERS = {
    "estimated_flops_per_gpu": "Floating point operations per GPU",
    "estimated_read_bytes_per_gpu": "Bytes read from memory per GPU",
    "estimated_write_bytes_per_gpu": "Bytes written to memory per GPU",
    "prefix_cache_hits": "Tokens found in the prefix cache",
    "external_prefix_cache_queries": "Tokens looked up in other instances' prefix caches",
    "external_prefix_cache_hits": "Tokens found in other instances' prefix caches",
    "mm_cache_queries": "Items looked up in the multi-modal cache",
    "mm_cache_hits": "Items found in the multi-modal cache",
    "num_preemptions": "Preemptions",
    "prompt_tokens_cached": "Prompt tokens found in any cache",
}


class EngineMetrics:
    """The engine's observer: `vllm:*` in `registry`."""

    def __init__(self, registry: CollectorRegistry, model: str) -> None:
        self._registry = registry
        self._labels = {"model_name": model, "engine": "0"}
        for name, text in _STILL_COUNTERS.items():
            self._counter(name, text)
        tiers = ("device", "host", "p2p", "disk", "external_unspecified")
        self._by(Counter, "prompt_tokens_cached_by_source", "Cached prompt tokens", "source", tiers)
        self._rejections = self._by_reason()

        self._cache_queries = self._counter("prefix_cache_queries", "Tokens looked up in the cache")
        self._prompt_tokens = self._counter("prompt_tokens", "Prompt tokens processed")
        self._computed_tokens = self._by(
            Counter,
            "prompt_tokens_by_source",
            "Prompt tokens by where they came from",
            "source",
            ("local_compute", "local_cache_hit", "external_kv_transfer"),
        )["local_compute"]
        self._generation_tokens = self._counter("generation_tokens", "Tokens generated")
        self._success = self._by(
            Counter,
            "request_success",
            "Requests that were answered, by why they ended",
            "finished_reason",
            ("stop", "length", "abort", "error", "repetition"),
        )

        self._ttft = self._histogram("time_to_first_token_seconds", _TTFT_SECONDS)
        self._gap = self._histogram("inter_token_latency_seconds", _GAP_SECONDS)
        self._step = self._histogram("iteration_tokens_total", _STEP_TOKENS)
        per_request: dict[str, tuple[float, ...]] = {
            "request_prompt_tokens": _TOKEN_COUNTS,
            "request_generation_tokens": _TOKEN_COUNTS,
            "request_max_num_generation_tokens": _TOKEN_COUNTS,
            "request_params_n": (1, 2, 5, 10, 20),
            "request_params_max_tokens": _TOKEN_COUNTS,
            "request_time_per_output_token_seconds": _GAP_SECONDS,
            "e2e_request_latency_seconds": _REQUEST_SECONDS,
            "request_queue_time_seconds": _REQUEST_SECONDS,
            "request_inference_time_seconds": _REQUEST_SECONDS,
            "request_prefill_time_seconds": _REQUEST_SECONDS,
            "request_decode_time_seconds": _REQUEST_SECONDS,
            "request_num_preemptions": (1, 2, 3, 4, 5, 10, 20),
            "request_prefill_kv_computed_tokens": _TOKEN_COUNTS,
        }
        self._per_request = {
            name: self._histogram(name, buckets) for name, buckets in per_request.items()
        }

        info = Gauge(
            "vllm:cache_config_info",
            "Settings of the KV cache",
            [*_CACHE_CONFIG, "engine"],
            registry=registry,
        )
        info.labels(**_CACHE_CONFIG, engine="0").set(1)

    def watch(self, engine: Engine) -> None:
        """Read the gauges from `engine` whenever they are asked for."""

        def running() -> float:
            return len(engine.running)

        def waiting() -> float:
            return len(engine.waiting)

        def cache_usage() -> float:
            held = sum(one.prompt_tokens + one.produced for one in engine.running)
            return min(1.0, held / KV_CACHE_TOKENS)

        self._gauge("num_requests_running", "Requests that generate", running)
        self._gauge("num_requests_waiting", "Requests that wait", waiting)
        self._gauge("kv_cache_usage_perc", "Used share of the KV cache", cache_usage)
        by_reason = self._by(
            Gauge,
            "num_requests_waiting_by_reason",
            "Requests that wait, by what for",
            "reason",
            ("capacity", "deferred"),
        )
        by_reason["capacity"].set_function(waiting)
        states = ("awake", "weights_offloaded", "discard_all")
        sleep = self._by(Gauge, "engine_sleep_state", "Which of these holds", "sleep_state", states)
        sleep["awake"].set(1)

    def first_token(self, sequence: Sequence) -> None:
        """The sequence's first token has come."""
        self._ttft.observe(sequence.first_token - sequence.arrived)

    def next_token(self, gap_seconds: float) -> None:
        """Another token has come."""
        self._gap.observe(gap_seconds)

    def iteration(self, prompt_tokens: int, generated_tokens: int) -> None:
        """One step of the engine is done."""
        self._step.observe(prompt_tokens + generated_tokens)
        self._generation_tokens.inc(generated_tokens)
        for counter in (self._prompt_tokens, self._computed_tokens, self._cache_queries):
            counter.inc(prompt_tokens)

    def finished(self, sequence: Sequence) -> None:
        """The sequence's last token has come."""
        self._success[sequence.finish_reason].inc()
        decode = sequence.last_token - sequence.first_token
        observed = {
            "request_prompt_tokens": sequence.prompt_tokens,
            "request_generation_tokens": sequence.produced,
            "request_max_num_generation_tokens": sequence.produced,
            "request_params_n": sequence.siblings,
            "request_params_max_tokens": sequence.max_tokens,
            "request_time_per_output_token_seconds": decode / max(1, sequence.produced - 1),
            "e2e_request_latency_seconds": sequence.last_token - sequence.arrived,
            "request_queue_time_seconds": sequence.started - sequence.arrived,
            "request_inference_time_seconds": sequence.last_token - sequence.started,
            "request_prefill_time_seconds": sequence.first_token - sequence.started,
            "request_decode_time_seconds": decode,
            "request_num_preemptions": 0,
            "request_prefill_kv_computed_tokens": sequence.prompt_tokens,
        }
        for name, value in observed.items():
            self._per_request[name].observe(value)

    def rejected(self) -> None:
        """A request found the queue full."""
        self._rejections["max_num_queued_reqs"].inc()

    def _counter(self, name: str, text: str) -> Counter:
        family = Counter(f"vllm:{name}", text, [*self._labels], registry=self._registry)
        return family.labels(**self._labels)

    def _histogram(self, name: str, buckets: tuple[float, ...]) -> Histogram:
        family = Histogram(
            f"vllm:{name}",
            name.replace("_", " ").capitalize(),
            [*self._labels],
            buckets=buckets,
            registry=self._registry,
        )
        return family.labels(**self._labels)

    def _gauge(self, name: str, text: str, read: Callable[[], float]) -> None:
        family = Gauge(f"vllm:{name}", text, [*self._labels], registry=self._registry)
        family.labels(**self._labels).set_function(read)

    def _by(self, kind: Any, name: str, text: str, label: str, values: tuple[str, ...]) -> Any:
        """A family with one child for each of the label's values, by that value."""
        family = kind(f"vllm:{name}", text, [*self._labels, label], registry=self._registry)
        return {value: family.labels(**self._labels, **{label: value}) for value in values}

    def _by_reason(self) -> dict[str, Counter]:
        # The one family that is counted before the engine, and so has no `engine` label.
        family = Counter(
            "vllm:admission_rejections",
            "Requests turned away",
            ["model_name", "reason"],
            registry=self._registry,
        )
        model = self._labels["model_name"]
        reasons = ("max_num_queued_reqs", "max_num_queued_tokens")
        return {reason: family.labels(model_name=model, reason=reason) for reason in reasons}
