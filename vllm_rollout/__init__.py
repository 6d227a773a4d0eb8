"""vllm-rollout: decides whether a vLLM deployment may take its next step, and takes it."""

__version__ = "0.1.0"
