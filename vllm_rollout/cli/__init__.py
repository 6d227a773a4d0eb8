"""The commands behind `vllm-rollout` and `gate-and-promote`, one module for each concern."""
