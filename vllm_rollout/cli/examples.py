"""The examples at the end of each command's help."""

EXAMPLES = {
    "check": ("vllm-rollout check http://gpu-1:8000",),
    "init": ("vllm-rollout init", "vllm-rollout init --yes --platform local"),
    "deploy": ("vllm-rollout deploy llama-2-7b --values values.yaml",),
    "preflight": ("vllm-rollout preflight llama-2-7b -e staging --values values.yaml",),
    "gate-and-promote": (
        "gate-and-promote llama-2-7b --to staging",
        "gate-and-promote llama-2-7b --plan",
        'gate-and-promote llama-2-7b --reason "new tokenizer"',
    ),
    "sign-off": (
        'vllm-rollout sign-off llama-2-7b --evidence 3f9a1c0b --as "Grace of QA"',
        "vllm-rollout sign-off llama-2-7b --evidence 3f9a1c0b --as Grace --reject",
    ),
    "soak": ("vllm-rollout soak llama-2-7b", "vllm-rollout soak llama-2-7b --once"),
    "capacity": ("vllm-rollout capacity llama-2-7b --max-rate 200/s",),
    "rollback": ('vllm-rollout rollback llama-2-7b --reason "wrong language"',),
    "watch": ("vllm-rollout watch llama-2-7b --for 24h",),
    "status": ("vllm-rollout status llama-2-7b", "vllm-rollout status llama-2-7b --metrics"),
    "top": ("vllm-rollout top llama-2-7b", "vllm-rollout top llama-2-7b -e production --json"),
    "history": ("vllm-rollout history llama-2-7b -e production",),
    "diagnose": ("vllm-rollout diagnose llama-2-7b -e production",),
    "logs": ("vllm-rollout logs llama-2-7b -e production --tail 50",),
    "up": ("vllm-rollout up", "vllm-rollout up --systemd"),
    "restart": ("vllm-rollout restart llama-2-7b -e production",),
    "backup": ("vllm-rollout backup state.db",),
    "uninstall": ("vllm-rollout uninstall llama-2-7b -e staging",),
    "report": (
        "vllm-rollout report llama-2-7b --open",
        "vllm-rollout report --index --open",
        "vllm-rollout report reports/llama-2-7b/RUN/evidence.json --out again",
    ),
    "explain": ("vllm-rollout explain reports/llama-2-7b/RUN/evidence.json",),
    "simulate": ('vllm-rollout simulate --ttft-seconds "lognormal(median=0.2, sigma=0.5)"',),
    "policy show": ("vllm-rollout policy show --set watch.duration=30m",),
    "policy schema": ("vllm-rollout policy schema > rollout.schema.json",),
}


def epilog(command: str) -> str:
    """Return the end of a command's help; the line of an example is a paragraph of its own."""
    return "\n\n".join(("**For example**", *(f"- `{each}`" for each in EXAMPLES.get(command, ()))))
