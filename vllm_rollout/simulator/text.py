"""Token counts of prompts, and the model's answers.

A token is a word with the space before it. That is coarser than a tokenizer and enough: nothing
here depends on which tokens there are, only on how many.
"""

import random
import re
import zlib
from dataclasses import dataclass

_WORD = re.compile(r"\w+|[^\w\s]")
_DEFAULT_OUTPUT = (
    "The tide comes in over the flat sand and covers the stones one after another. "
    "Two boats lie on their sides until the water lifts them, and then they swing to the wind. "
    "Further out a lighthouse turns its lamp, although nobody has asked it to, because evening "
    "is near and the rocks have not moved since last night."
)
_KNOWN_QUESTION, _KNOWN_ANSWER = "the capital of France", "Paris."
"""Of the sample prompts that the policy ships, the one whose answer has a rule."""


def token_count(text: str) -> int:
    """Tokens in a prompt, at least one."""
    return max(1, len(_WORD.findall(text)))


@dataclass(frozen=True, slots=True)
class Speech:
    """Words repeated in a circle, from `start` on."""

    words: tuple[str, ...]
    start: int = 0

    def token(self, number: int) -> str:
        """The text of token `number`, counted from 0."""
        word = self.words[(self.start + number) % len(self.words)]
        return f" {word}" if number else word


def speech(output: str | None, prompt: str, *, temperature: float, rng: random.Random) -> Speech:
    """Return the model's answer to `prompt`: `output`, or a text that greedy sampling repeats."""
    if output is not None:
        return Speech(tuple(output.split(" ")))
    words = tuple(_DEFAULT_OUTPUT.split(" "))
    if _KNOWN_QUESTION in prompt:
        return Speech((_KNOWN_ANSWER, *words))
    greedy = zlib.crc32(prompt.encode(errors="replace"))
    return Speech(words, (greedy if temperature == 0 else rng.randrange(len(words))) % len(words))
