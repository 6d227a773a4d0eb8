"""`python -m vllm_rollout` is `vllm-rollout`."""

from vllm_rollout.cli.main import app

app(prog_name="vllm-rollout")
