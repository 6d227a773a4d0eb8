"""Response bodies and server-sent events as vLLM 0.32 writes them."""

import json
import time
from collections.abc import Iterable
from functools import lru_cache
from itertools import accumulate
from typing import Any

from vllm_rollout.simulator.engine import FinishReason
from vllm_rollout.simulator.requests import Kind

VERSION = "0.32.0"
DONE = b"data: [DONE]\n\n"

_NAMES: dict[Kind, tuple[str, str, str]] = {
    "completion": ("cmpl", "text_completion", "text_completion"),
    "chat": ("chatcmpl", "chat.completion", "chat.completion.chunk"),
}
# Stands where the text will be; NUL cannot come from a request header, so it is found once.
_HOLE = "\0"


def to_json(value: Any) -> bytes:
    """Compact UTF-8 JSON, as FastAPI writes it."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.encode(errors="replace")


def event(value: Any) -> bytes:
    """One server-sent event."""
    return b"data: " + to_json(value) + b"\n\n"


def error_event(body: dict[str, Any]) -> bytes:
    """An error inside a stream that has answered 200 already; vLLM spaces this one's JSON."""
    return f"data: {json.dumps(body)}\n\n".encode()


@lru_cache(maxsize=512)
def _text_json(text: str) -> bytes:
    return to_json(text)


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, Any]:
    """Token counts of one request."""
    return {
        "prompt_tokens": prompt_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "completion_tokens": completion_tokens,
    }


class Frames:
    """The events of one streamed answer, encoded once and filled with each token's text."""

    def __init__(self, kind: Kind, *, request_id: str, model: str, fingerprint: str) -> None:
        self._chat = kind == "chat"
        self._head = {
            "id": request_id,
            "object": _NAMES[kind][2],
            "created": int(time.time()),
            "model": model,
        }
        self._fingerprint = {"system_fingerprint": fingerprint}
        self._templates: dict[int, tuple[bytes, bytes]] = {}

    def opening(self, index: int) -> bytes:
        """Return the bytes before a choice's first token: in a chat, the role."""
        if not self._chat:
            return b""
        delta = {"role": "assistant", "content": ""}
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}
        return event(
            {**self._head, "choices": [choice], "prompt_token_ids": None, "prompt_text": None}
        )

    def token(self, index: int, text: str) -> bytes:
        """One token that is not the choice's last."""
        template = self._templates.get(index)
        if template is None:
            chunk = {**self._head, "choices": [self._choice(index, _HOLE, None)]}
            before, _, after = event(chunk).partition(to_json(_HOLE))
            template = self._templates[index] = before, after
        return b"%b%b%b" % (template[0], _text_json(text), template[1])

    def last_token(self, index: int, text: str, reason: FinishReason, *, closing: bool) -> bytes:
        """A choice's last token; `closing` if nothing but [DONE] follows."""
        chunk = {**self._head, "choices": [self._choice(index, text, reason)]}
        return event({**chunk, **self._fingerprint} if closing else chunk)

    def usage(self, counts: dict[str, Any]) -> bytes:
        """The token counts, when they were asked for."""
        return event({**self._head, "choices": [], "usage": counts, **self._fingerprint})

    def _choice(self, index: int, text: str, reason: FinishReason | None) -> dict[str, Any]:
        if self._chat:
            choice = {"index": index, "delta": {"content": text}, "logprobs": None}
            ending = {} if reason is None else {"stop_reason": None}
            return {**choice, "finish_reason": reason, **ending, "token_ids": None}
        return {
            "index": index,
            "text": text,
            "logprobs": None,
            "finish_reason": reason,
            "stop_reason": None,
            "prompt_token_ids": None,
            "token_ids": None,
        }


def new_id(kind: Kind, unique: str) -> str:
    """The id of an answer."""
    return f"{_NAMES[kind][0]}-{unique}"


def choice(
    kind: Kind, index: int, text: str, reason: FinishReason, logprobs: dict[str, Any] | None
) -> dict[str, Any]:
    """One choice of an answer that is not streamed."""
    if kind == "chat":
        message = {
            "role": "assistant",
            "content": text,
            "refusal": None,
            "annotations": None,
            "audio": None,
            "function_call": None,
            "reasoning": None,
        }
        content: dict[str, Any] = {"message": message}
        prompt = {}
    else:
        content = {"text": text}
        prompt = {"prompt_logprobs": None, "prompt_token_ids": None}
    return {
        "index": index,
        **content,
        "logprobs": logprobs,
        "finish_reason": reason,
        "stop_reason": None,
        "token_ids": None,
        **prompt,
        "routed_experts": None,
    }


def logprobs(tokens: Iterable[str], values: Iterable[float]) -> dict[str, Any]:
    """Log probabilities of a completion's tokens, the likeliest token being the one chosen."""
    tokens, values = list(tokens), list(values)
    return {
        "text_offset": [0, *accumulate(len(token) for token in tokens[:-1])],
        "token_logprobs": values,
        "tokens": tokens,
        "top_logprobs": [{token: value} for token, value in zip(tokens, values, strict=True)],
    }


def whole(
    kind: Kind,
    choices: list[dict[str, Any]],
    counts: dict[str, Any],
    *,
    request_id: str,
    model: str,
    fingerprint: str,
) -> dict[str, Any]:
    """The body of an answer that is not streamed."""
    details = {"prompt_tokens_details": None, "completion_tokens_details": None}
    prompt = {"prompt_logprobs": None, "prompt_token_ids": None, "prompt_text": None}
    return {
        "id": request_id,
        "object": _NAMES[kind][1],
        "created": int(time.time()),
        "model": model,
        "choices": choices,
        "service_tier": None,
        "system_fingerprint": fingerprint,
        "usage": {**counts, **details},
        **(prompt if kind == "chat" else {}),
        "kv_transfer_params": None,
        "ec_transfer_params": None,
        "metrics": None,
    }


def model_list(model: str, max_model_len: int, unique: str) -> dict[str, Any]:
    """The body of `/v1/models`."""
    created = int(time.time())
    permission = {
        "id": f"modelperm-{unique}",
        "object": "model_permission",
        "created": created,
        "allow_create_engine": False,
        "allow_sampling": True,
        "allow_logprobs": True,
        "allow_search_indices": False,
        "allow_view": True,
        "allow_fine_tuning": False,
        "organization": "*",
        "group": None,
        "is_blocking": False,
    }
    card = {
        "id": model,
        "object": "model",
        "created": created,
        "owned_by": "vllm",
        "root": model,
        "parent": None,
        "max_model_len": max_model_len,
        "permission": [permission],
    }
    return {"object": "list", "data": [card]}
