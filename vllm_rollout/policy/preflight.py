"""Checks before a build is deployed to an environment."""

from vllm_rollout.policy.fields import Block, Switch


class Preflight(Block):
    """The pre-deployment checks; each is an item of the gate `preflight`."""

    chart: Switch
    """The chart passes `helm lint --strict`."""
    templates: Switch
    """The templates render with the environment's values."""
    values: Switch
    """The values are of this model, and the overlay leaves the build alone."""
    namespace: Switch
    """The namespace is there."""
    gpus: Switch
    """Nodes have room for every pod, the surge of a rolling update included."""
    quota: Switch
    """The namespace's quotas leave room."""
    image: Switch
    """Every image is in its registry, and its digest is known."""
    model: Switch
    """The model is on Hugging Face and the pods may read it."""
    volumes: Switch
    """The claims, Secrets and ConfigMaps that pods need are there, claims bound."""

    @property
    def enabled(self) -> tuple[str, ...]:
        """Names of the checks that are made."""
        return tuple(name for name in type(self).model_fields if getattr(self, name))
