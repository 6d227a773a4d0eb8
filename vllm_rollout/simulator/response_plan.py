"""Plan of the response to one valid request: everything drawn or decided before it runs."""

import random
from typing import Any

from vllm_rollout.simulator import responses as answers
from vllm_rollout.simulator.dials import Dials
from vllm_rollout.simulator.engine import Listener, Sequence
from vllm_rollout.simulator.requests import Inference
from vllm_rollout.simulator.text import Speech, speech


class Plan:
    """Plan of request number `number`.

    All draws come from the dials' seed and the number, so the same seed and the same sequence of
    requests give the same outcomes, times and texts, however long each takes.
    """

    def __init__(self, inference: Inference, dials: Dials, number: int) -> None:
        self.inference = inference
        rng = _draws(dials.seed, number)
        # Always three draws in this order: turning one dial must not change another's draws.
        self.fails = rng.random() < dials.error_rate
        self.malformed = rng.random() < dials.malformed_rate
        self.truncated = rng.random() < dials.truncated_rate

        eos = dials.eos_after
        if eos is not None and eos <= inference.max_tokens and not inference.ignore_eos:
            self._length, self._stops = eos, True
        else:
            self._length, self._stops = inference.max_tokens, False
        self._ttft, self._inter_token = dials.ttft_seconds, dials.inter_token_seconds
        self._rngs: list[random.Random] = []
        self._speeches: list[Speech] = []
        for choice in range(len(inference.prompts) * inference.n):
            own = _draws(dials.seed, number, choice)
            prompt = inference.prompts[choice // inference.n].text
            self._rngs.append(own)
            self._speeches.append(
                speech(dials.output, prompt, temperature=inference.temperature, rng=own)
            )

    @property
    def choices(self) -> int:
        """Number of texts."""
        return len(self._speeches)

    @property
    def usage(self) -> dict[str, Any]:
        """The token counts."""
        return answers.usage(
            sum(prompt.tokens for prompt in self.inference.prompts), self._length * self.choices
        )

    def sequences(self, listener: Listener, *, arrived: float) -> list[Sequence]:
        """Return the sequences for the engine to run."""
        inference = self.inference
        return [
            Sequence(
                index=index,
                listener=listener,
                prompt_tokens=inference.prompts[index // inference.n].tokens,
                max_tokens=inference.max_tokens,
                length=self._length,
                finish_reason="stop" if self._stops else "length",
                rng=rng,
                ttft=self._ttft,
                inter_token=self._inter_token,
                siblings=inference.n,
                arrived=arrived,
            )
            for index, rng in enumerate(self._rngs)
        ]

    def token_text(self, index: int, number: int) -> str:
        """The text of a choice's token, counted from 1; a token that ends it by itself has none."""
        if self._stops and number == self._length:
            return ""
        return self._speeches[index].token(number - 1)

    def body(self, *, request_id: str, model: str, fingerprint: str) -> dict[str, Any]:
        """The whole answer to a request that is not streamed."""
        kind = self.inference.kind
        choices = []
        for index, rng in enumerate(self._rngs):
            tokens = [self.token_text(index, number + 1) for number in range(self._length)]
            logprobs = None
            if self.inference.logprobs:
                logprobs = answers.logprobs(tokens, [-rng.expovariate(1.0) for _ in tokens])
            choices.append(
                answers.choice(
                    kind, index, "".join(tokens), "stop" if self._stops else "length", logprobs
                )
            )
        return answers.whole(
            kind, choices, self.usage, request_id=request_id, model=model, fingerprint=fingerprint
        )


def _draws(*key: int) -> random.Random:
    return random.Random(":".join(map(str, key)))  # noqa: S311 - to be repeatable, not secret
