"""Why a request got no answer, in one sentence, and what to do: by outcome, status and words.

Gates, the load and `vllm-rollout check` ask here, so that a mistake reads alike wherever it shows.
"""

import re
from collections.abc import Sequence

from vllm_rollout.judge.log_signs import sign_in
from vllm_rollout.model.load_result import NO_USAGE, WEB_PAGE, RequestOutcome
from vllm_rollout.model.observation import NAME_THE_ADDRESS, ServedModels
from vllm_rollout.model.text import shown

_LONGEST_WORDS = 200
_NO_SUCH_MODEL = re.compile(
    r"model.{0,120}(?:does not exist|not found|not exist|not available)|(?:invalid|unknown) model"
    r"|no such model|model_not_found",
    re.IGNORECASE | re.DOTALL,
)
_OTHER_API = re.compile(r"does not support|not supported|not implemented", re.IGNORECASE)
_TOO_LONG = re.compile(
    r"maximum context length|max_model_len|max_tokens|max_completion_tokens|longer than the maximum"
    r"|max seq len|context window",
    re.IGNORECASE,
)
_WRITE_HTTPS = "Write https:// in place of http://."
_PLAIN_TO_TLS = re.compile(r"HTTP request\b.{0,40}\bHTTPS (?:server|port)", re.IGNORECASE)
_TOO_LONG_REMEDY = (
    "Ask for less, or serve a longer context: the prompt and `max_tokens` together have to fit "
    "`--max-model-len` (`load.max_tokens`, `load.traffic.workload`, `gates.inference`)."
)
_BY_STATUS = {
    401: "Give the load a key that the server accepts: `VLLM_ROLLOUT_API_KEY`.",
    403: "Give the load a key that may use this model: `VLLM_ROLLOUT_API_KEY`.",
    404: "Check the address, and that the server serves the model under this name "
    "(`--served-model-name`).",
    408: "See what gave up waiting, the server or a gateway, and why it was slow.",
    413: "Ask for less, or raise the limit that the server or its gateway has for a request.",
    429: "Raise the rate limit that the server or its gateway has for this key, or ask for "
    "less (`load.rate`).",
    502: "See why the gateway found no server that answers: replicas that restarted or were not "
    "ready, or its own limits on connections and time.",
    503: "See which queue was full or which replicas were not ready at that time, and give the "
    "deployment more replicas.",
    504: "See why the gateway gave up waiting: its time limit, or replicas too few or too slow.",
}
_NO_TOKENS = (
    "Name a model that generates text: embedding and pooling models give no tokens, and cannot be "
    "gated."
)
_REFUSED = (
    "The server refuses the request, and its words say why: make it such as the server takes."
)
_SERVER_FAILED = (
    "The server failed: read its log of that time, where the first error counts, and fix that "
    "before the next attempt."
)
_BY_OUTCOME = {
    RequestOutcome.TIMEOUT: "The server takes requests and does not answer in time: the engine "
    "hangs, still loads, or has too long a queue. See its log, and restart what hangs.",
    RequestOutcome.CONNECTION: "See whether replicas restarted at that time, and what lies between "
    "them and here: Service, gateway, certificates (a server that speaks TLS is https://).",
    RequestOutcome.MALFORMED: "Send one such request with `curl -N` and compare the answer with "
    "the OpenAI API: something else may answer in the server's place.",
    RequestOutcome.TRUNCATED: "See what cuts answers off before their end: replicas that end, or "
    "a gateway's limit on time or size.",
}


def remedy_for(*, outcome: RequestOutcome, status: int, error: str) -> str:
    """Return what to do about a request that got no answer; empty for one that was not sent."""
    if _PLAIN_TO_TLS.search(error):
        return _WRITE_HTTPS
    if outcome is not RequestOutcome.HTTP_ERROR:
        if is_page(outcome, error):
            return NAME_THE_ADDRESS
        if error == NO_USAGE:
            return (
                "Let the server, or the gateway before it, honour "
                "`stream_options: {include_usage: true}`: else nobody can count the tokens."
            )
        return _BY_OUTCOME.get(outcome, "")
    if status in (400, 413, 422) and _TOO_LONG.search(error):
        return _TOO_LONG_REMEDY
    if status == 500 and (sign := sign_in(error)):
        cause, what = sign.cause, sign.resolution
        return f"{cause[:1].upper()}{cause[1:]}: {what[:1].lower()}{what[1:]}"
    return _BY_STATUS.get(status, _REFUSED if 400 <= status < 500 else _SERVER_FAILED)


def is_page(outcome: RequestOutcome, error: str) -> bool:
    """Return True for an answer that is a web page: nothing of vLLM's sends one."""
    return outcome is RequestOutcome.MALFORMED and error.startswith(WEB_PAGE)


def is_of_another_model(status: int, error: str) -> bool:
    """Return True if the server does not know the model by the name it was asked for."""
    return status in (400, 404) and bool(_NO_SUCH_MODEL.search(error))


def is_of_another_api(status: int, error: str) -> bool:
    """Return True if the server has no such API, or not for this model."""
    if status == 400:
        return bool(_OTHER_API.search(error)) and not _TOO_LONG.search(error)
    return status in (404, 405, 501) and not is_of_another_model(status, error)


def page_reason(url: str, page: str) -> str:
    """The reason where a web page came in place of an answer."""
    return f"{url} answered {page}: is this vLLM's address?"


def plain_to_tls(url: str) -> tuple[str, str]:
    """Return reason and remedy where `url` takes TLS alone."""
    return f"{url} speaks TLS, and was asked without", _WRITE_HTTPS


def other_model(url: str, model: str, name: str, listed: ServedModels) -> tuple[str, str]:
    """Return reason and remedy where `url` serves others than `name`, which stands for `model`."""
    if not listed.models:
        reason = f"{url} serves no model called {name}, and lists none"
        return reason, f"Serve it under this name: --served-model-name {name}."
    other = listed.models[0].name
    remedy = (
        f"Name what it serves, --model {other}; or serve it under its name, --served-model-name "
        f"{name}; or set `models.{model}.served_as: {other}` in the policy."
    )
    return f"{url} serves {listed.names}, not {name}", remedy


def other_api(url: str, path: str, error: str, offered: Sequence[str]) -> tuple[str, str]:
    """Return reason and remedy where `url` has no API at `path`; it has those `offered`."""
    has = f"it offers {' and '.join(offered)}" if offered else "it offers no other that is known"
    reason = f"{path} was asked, which {url} does not offer ({_words(error)}); {has}"
    for api, there in (("chat", "/v1/chat/completions"), ("completions", "/v1/completions")):
        if there in offered:
            return reason, f"Set `api: {api}` in the policy."
    if offered or _OTHER_API.search(error):
        return reason, _NO_TOKENS
    return reason, NAME_THE_ADDRESS


def answered(url: str, *, outcome: RequestOutcome, status: int, error: str) -> str:
    """The reason where a request to `url` got no answer, in the server's words."""
    if outcome is not RequestOutcome.HTTP_ERROR:
        return f"{url}: {_words(error or outcome)}"
    said = _words(error)
    return f"{url} answered {said if said.startswith(str(status)) else f'{status} {said}'}"


def _words(error: str) -> str:
    """The server's words on one line, the first of many."""
    return shown(" ".join(error.split()), _LONGEST_WORDS)
