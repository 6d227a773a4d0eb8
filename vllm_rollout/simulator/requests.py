"""Request bodies, checked as vLLM 0.32 checks them, refused in its words."""

import json
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from vllm_rollout.simulator.text import token_count

Kind = Literal["completion", "chat"]

# Longest token of the recorded server's tokenizer: a longer prompt cannot fit and is not tokenized.
_CHARACTERS_PER_TOKEN = 13
_MOST_CHOICES = 16_384


class Refusal(Exception):  # noqa: N818 - an answer, not a failure of the simulator
    """An error answer: `status` and the JSON `body` that goes with it."""

    def __init__(
        self, message: str, *, status: int = 400, kind: str = "", param: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.body = {
            "error": {
                "message": message,
                "type": kind or HTTPStatus(status).phrase,
                "param": param,
                "code": status,
            }
        }


def bad_value(name: str, problem: str, value: object = None) -> Refusal:
    """A refusal of one parameter's value."""
    shown = f"parameter={name}" if value is None else f"parameter={name}, value={value}"
    return Refusal(f"{problem} ({shown})", kind="BadRequestError", param=name)


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt and its length in tokens."""

    text: str
    tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Inference:
    """A valid request."""

    kind: Kind
    prompts: tuple[Prompt, ...]
    max_tokens: int
    n: int
    temperature: float
    stream: bool
    include_usage: bool
    ignore_eos: bool
    logprobs: bool


class _StreamOptions(BaseModel):
    include_usage: bool | None = False


class _Body(BaseModel):
    model: str | None = None
    max_tokens: int | None = None
    n: int | None = 1
    temperature: float | None = None
    top_p: float | None = None
    stream: bool | None = False
    stream_options: _StreamOptions | None = None
    ignore_eos: bool = False


class _CompletionBody(_Body):
    prompt: list[int] | list[list[int]] | str | list[str] | None = None
    max_tokens: int | None = 16
    logprobs: int | None = None

    def prompts(self) -> list[Prompt]:
        if not self.prompt:
            raise bad_value(
                "prompt", "Either prompt or prompt_embeds must be provided and non-empty."
            )
        if isinstance(self.prompt, str):
            return [_written(self.prompt)]
        texts = [one for one in self.prompt if isinstance(one, str)]
        token_lists = [one for one in self.prompt if isinstance(one, list)]
        if texts or token_lists:
            return [*map(_written, texts), *(Prompt("", len(one)) for one in token_lists)]
        return [Prompt("", len(self.prompt))]


class _ChatBody(_Body):
    messages: list[dict[str, Any]]
    max_completion_tokens: int | None = None
    logprobs: bool | None = False

    def prompts(self) -> list[Prompt]:
        if not self.messages:
            raise Refusal(
                "Cannot apply chat template to an empty conversation. "
                "Provide at least one message.",
                kind="BadRequestError",
            )
        turns = [f"[{one.get('role')}] {_content(one.get('content'))}\n" for one in self.messages]
        return [_written("".join(turns) + "[assistant]")]


def _content(content: object) -> str:
    if isinstance(content, list):
        return " ".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return "" if content is None else str(content)


def _written(text: str) -> Prompt:
    return Prompt(text, token_count(text))


def read(
    kind: Kind, content_type: str, body: bytes, *, model: str, max_model_len: int
) -> Inference:
    """The request in `body`.

    Raises:
        Refusal: vLLM would refuse it, with this answer.
    """
    if content_type.partition(";")[0].strip().lower() != "application/json":
        raise _invalid(["Unsupported Media Type: Only 'application/json' is allowed"], None)
    form = _CompletionBody if kind == "completion" else _ChatBody
    try:
        parsed = form.model_validate(_decoded(body))
    except ValidationError as error:
        raise _invalid_fields(error) from None
    if parsed.model and parsed.model != model:
        raise Refusal(
            f"The model `{parsed.model}` does not exist. Valid aliases: {model}.",
            status=404,
            kind="NotFoundError",
            param="model",
        )
    prompts = parsed.prompts()
    longest = max((prompt.tokens for prompt in prompts), default=0)
    _fits_characters(prompts, max_model_len)
    max_tokens = parsed.max_tokens
    if isinstance(parsed, _ChatBody):
        max_tokens = parsed.max_completion_tokens or max_tokens
    if max_tokens is None:
        max_tokens = max(1, max_model_len - longest)
    _check_sampling(parsed, max_tokens, max_model_len)
    _fits_tokens(longest, max_tokens, max_model_len)
    return Inference(
        kind=kind,
        prompts=tuple(prompts),
        max_tokens=max_tokens,
        n=1 if parsed.n is None else parsed.n,
        temperature=1.0 if parsed.temperature is None else parsed.temperature,
        stream=bool(parsed.stream),
        include_usage=bool(parsed.stream_options and parsed.stream_options.include_usage),
        ignore_eos=parsed.ignore_eos,
        # Only completions give log probabilities here; chat answers null.
        logprobs=isinstance(parsed, _CompletionBody) and parsed.logprobs is not None,
    )


def _decoded(body: bytes) -> Any:
    try:
        return json.loads(body)
    except json.JSONDecodeError as error:
        problem = {
            "type": "json_invalid",
            "loc": f"body.{error.pos}",
            "msg": "JSON decode error",
            "input": "<dict of 0 items>",
            "ctx": {"error": error.msg},
        }
        raise _invalid([str(problem)], f"body.{error.pos}") from None
    except (UnicodeDecodeError, RecursionError):
        raise Refusal("There was an error parsing the body") from None


def _invalid(problems: list[str], param: str | None) -> Refusal:
    plural = "s" if len(problems) > 1 else ""
    listed = "\n".join(f"  {problem}" for problem in problems)
    return Refusal(f"{len(problems)} validation error{plural}:\n{listed}", param=param)


def _invalid_fields(error: ValidationError) -> Refusal:
    problems = [
        {
            "type": one["type"],
            "loc": ".".join(map(str, ("body", *one["loc"]))),
            "msg": one["msg"],
            "input": _shown(one["input"]),
        }
        for one in error.errors(include_url=False)
    ]
    return _invalid([str(problem) for problem in problems], str(problems[0]["loc"]))


def _shown(value: object) -> object:
    if isinstance(value, dict | list):
        return f"<{type(value).__name__} of {len(value)} items>"
    return value if not isinstance(value, str) else value[:100]


def _check_sampling(body: _Body, max_tokens: int, max_model_len: int) -> None:
    if max_tokens < 1:
        problem = f"max_tokens must be at least 1, got {max_tokens}."
        raise bad_value("max_tokens", problem, max_tokens)
    if max_tokens > max_model_len:
        raise bad_value(
            "max_tokens",
            f"max_tokens={max_tokens} cannot be greater than max_model_len={max_model_len}. "
            "Please request fewer output tokens.",
            max_tokens,
        )
    if body.n is not None and body.n < 1:
        raise bad_value("n", f"n must be at least 1, got {body.n}.", body.n)
    if body.n is not None and body.n > _MOST_CHOICES:
        raise bad_value("n", f"n must be at most {_MOST_CHOICES}, got {body.n}.", body.n)
    if body.temperature is not None and body.temperature < 0:
        problem = f"temperature must be non-negative, got {body.temperature}."
        raise bad_value("temperature", problem, body.temperature)
    if body.top_p is not None and not 0 < body.top_p <= 1:
        raise bad_value("top_p", f"top_p must be in (0, 1], got {body.top_p}.", body.top_p)


def _fits_characters(prompts: list[Prompt], max_model_len: int) -> None:
    limit = max_model_len * _CHARACTERS_PER_TOKEN
    for length in (len(prompt.text) for prompt in prompts):
        if length > limit:
            raise bad_value(
                "input_text",
                f"This model's maximum context length is {max_model_len} tokens. However, your "
                f"prompt contains {length} characters (more than {limit} characters, which is the "
                f"upper bound for {max_model_len} input tokens). "
                "Please reduce the length of the input prompt.",
                length,
            )


def _fits_tokens(prompt_tokens: int, max_tokens: int, max_model_len: int) -> None:
    if prompt_tokens + max_tokens > max_model_len:
        raise bad_value(
            "input_tokens",
            f"This model's maximum context length is {max_model_len} tokens. However, you "
            f"requested {max_tokens} output tokens and your prompt contains {prompt_tokens} input "
            "tokens. Please reduce the length of the input prompt or the number of requested "
            "output tokens.",
            prompt_tokens,
        )
