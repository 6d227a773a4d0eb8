"""Content of a load's requests: prompts by class and lengths by distribution, all seeded.

Request `number` asks the same whatever the number of workers. Prompts are made of common words,
about a token each. They differ in their first words (the run's nonce and the request's number), so
that no server answers from its prefix cache what users would make it compute; only `shared_prefix`
and `multi_turn` share what such prompts share. Prompts that must stay as they are (`file`,
`multi_turn`) differ in the `user` that they name, so that no gateway answers from its cache.
"""

import json
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

from vllm_rollout.model.load_plan import PATHS, Lengths, LoadPlan, RequestClass

NUMBER_DIGITS = 9
_NUMBER_MARK = "#" * NUMBER_DIGITS
_POOL = 1024
_SHARED = 0.75
"""Share of its words that a `shared_prefix` prompt has in common with the others of its class."""
_Z95 = 1.6449
_SENTENCE = (
    "the sea is wide and the wind moves over it all day while ships go out to fish and come back "
    "at night with what they found some of them small some of them large and the people on shore "
    "wait for news of the weather which turns without much notice in this part of the world"
)
_WORDS = _SENTENCE.split()

Message = dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """The body of a request: `before`, the request's number where it is `numbered`, `after`."""

    request_class: str
    max_tokens: int
    path: str
    stream: bool
    before: bytes
    after: bytes = b""
    numbered: bool = False

    @property
    def length(self) -> int:
        """Bytes of the whole body."""
        return len(self.before) + len(self.after) + NUMBER_DIGITS * self.numbered


class Workload:
    """The requests of a plan. `templates` are all that `pick` can give, unless it replays a trace.

    A mix is dealt as one shuffled pool in which each class has its share of the places.
    """

    def __init__(self, plan: LoadPlan) -> None:
        self._plan = plan
        self._random = random.Random(f"workload {plan.seed}")  # noqa: S311 - reproducible
        self._mark = f"{plan.nonce} {_NUMBER_MARK}".lstrip()
        self.templates = [] if plan.trace else self._pool()
        self._text = _Text() if plan.trace else None

    def pick(self, number: int) -> int:
        """The place in `templates` of request `number`."""
        count = len(self.templates)
        return 0 if count == 1 else _mixed(number + self._plan.seed) % count

    def replayed(self, number: int) -> Template:
        """Request `number` of the trace: as many tokens in and out as were recorded."""
        if self._text is None:
            raise ValueError("the plan has no trace")
        entry = self._plan.trace[number]
        fields = self._asked(
            self._plan.api, f"{self._mark} {self._text.words(entry.prompt_tokens)}"
        )
        fields |= {"max_tokens": entry.output_tokens, "ignore_eos": True}
        return _template("trace", self._plan.api, fields, stream=self._plan.stream)

    def _pool(self) -> list[Template]:
        plan = self._plan
        if not plan.classes:
            fields = self._asked(plan.api, f"{self._mark} {plan.prompt}")
            fields["max_tokens"] = plan.max_tokens
            return [_template("", plan.api, fields, stream=plan.stream)]
        pool = [
            template
            for each, count in zip(plan.classes, _places(plan.classes), strict=True)
            for template in self._class(each, count)
        ]
        self._random.shuffle(pool)
        return pool

    def _class(self, each: RequestClass, count: int) -> Iterator[Template]:
        prompts = self._prompts(each)
        for _ in range(count):
            prompt = next(prompts)
            user = each.kind in ("file", "text", "multi_turn")
            fields = self._asked(each.api, prompt, user=user)
            fields["max_tokens"] = self._length(each.output)
            yield _template(each.name, each.api, fields, stream=each.stream)

    def _asked(
        self, api: str, prompt: str | Sequence[Message], *, user: bool = False
    ) -> dict[str, object]:
        """Return the fields that say who asks what; the number's mark is in the first it can be."""
        who = {"user": f"vllm-rollout-{self._mark.replace(' ', '-')}"} if user else {}
        if api == "chat":
            messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
            return {"model": self._plan.model, **who, "messages": messages}
        return {"model": self._plan.model, **who, "prompt": _as_text(prompt)}

    def _prompts(self, each: RequestClass) -> Iterator[str | Sequence[Message]]:
        if each.prompt_tokens is None:
            while True:
                yield from each.prompts
        shared = self._words(round(_SHARED * each.prompt_tokens.median))
        while True:
            words = self._length(each.prompt_tokens)
            if each.kind == "multi_turn":
                yield from self._conversation(words, each.turns)
            elif each.kind == "shared_prefix":
                own = self._words(words - len(shared.split()))
                yield f"{shared} {self._mark} {own}".rstrip()
            else:
                yield f"{self._mark} {self._words(words)}".rstrip()

    def _conversation(self, words: int, turns: int) -> Iterator[list[Message]]:
        """Yield the requests of one conversation: each has the messages before and one question."""
        messages: list[Message] = []
        per_message = max(1, words // (2 * turns - 1))
        for _ in range(turns):
            messages.append({"role": "user", "content": self._words(per_message)})
            yield list(messages)
            messages.append({"role": "assistant", "content": self._words(per_message)})

    def _words(self, count: int) -> str:
        return " ".join(self._random.choices(_WORDS, k=max(0, count)))

    def _length(self, lengths: Lengths) -> int:
        if lengths.p95 <= lengths.median:
            return min(lengths.median, lengths.longest)
        sigma = math.log(lengths.p95 / lengths.median) / _Z95
        drawn = lengths.median * math.exp(self._random.gauss(0, sigma))
        return max(1, min(round(drawn), lengths.longest))


class _Text:
    """A long text and where each of its words ends, so that a prompt is one slice of it."""

    def __init__(self) -> None:
        self._text = ""
        self._ends: list[int] = []

    def words(self, count: int) -> str:
        if count > len(self._ends):
            words = (_WORDS * (2 * count // len(_WORDS) + 1))[: 2 * count]
            self._text = " ".join(words)
            self._ends, end = [], -1
            for word in words:
                end += 1 + len(word)
                self._ends.append(end)
        return self._text[: self._ends[count - 1]]


def _template(name: str, api: str, fields: dict[str, object], *, stream: bool) -> Template:
    fields = {**fields, "stream": stream}
    if stream:
        fields["stream_options"] = {"include_usage": True}
    before, mark, after = json.dumps(fields).encode().partition(_NUMBER_MARK.encode())
    return Template(
        request_class=name,
        max_tokens=cast("int", fields["max_tokens"]),
        path=PATHS[api],
        stream=stream,
        before=before,
        after=after,
        numbered=bool(mark),
    )


def _places(classes: Sequence[RequestClass]) -> list[int]:
    """Return how many of the pool's places each class gets: by weight, and one at least."""
    whole = sum(each.weight for each in classes)
    return [max(1, round(_POOL * each.weight / whole)) for each in classes]


def _as_text(prompt: str | Sequence[Message]) -> str:
    """Chat messages as the plain text of a completion."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{message['role']}: {message['content']}" for message in prompt)


def _mixed(number: int) -> int:
    """A number's bits well mixed (the finalizer of SplitMix64), so that order leaves no pattern."""
    mask = (1 << 64) - 1
    mixed = (number * 0x9E3779B97F4A7C15) & mask
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & mask
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & mask
    return mixed ^ (mixed >> 31)
