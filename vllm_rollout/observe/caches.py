"""Recognition of answers that came from a cache: they show nothing of the engine.

By what gateways and caches write into the headers, and by an answer that comes a second time.
"""

import re
from collections.abc import Iterable

from vllm_rollout.observe.answers import Answer

NO_CACHE = "no-store, no-cache"
"""`Cache-Control` of every request."""

_MOST_KNOWN = 100_000

_BEHIND_LITELLM = "llm_provider-"
"""LiteLLM puts this before the headers of the server behind it."""

_STATUS = re.compile(r"(?:[a-z0-9]+[-_])*cache(?:-status|-result|-state)?")
"""Cache-Status (RFC 9211); X-Cache (Fastly, CloudFront, Squid, Akamai, Varnish and nginx by habit);
X-Cache-Status (nginx by habit, Kong); CF-Cache-Status and cf-aig-cache-status (Cloudflare);
x-portkey-cache-status; Helicone-Cache; X-OpenRouter-Cache-Status; X-Proxy-Cache.
"""

_SERVED = re.compile(r"(?<![a-z=])(?:refresh_?)?(?:hit|stale|updating|revalidated)(?![a-z])")
"""HIT, SEMANTIC HIT, TCP_MEM_HIT, "Hit from cloudfront", nginx's STALE; never `fwd=stale`."""

_FLAG = re.compile(r"(?:[a-z0-9]+-)*cache-hits?")
"""x-vsr-cache-hit (vLLM's semantic router), X-Cache-Hits (Fastly, Varnish)."""


def cached_by(headers: Iterable[tuple[str, str]]) -> str:
    """Return the header that says that a cache answered, as `name: value`; empty without one."""
    for name, value in headers:
        key, said = name.lower().removeprefix(_BEHIND_LITELLM), value.strip().lower()
        if ("cache" in key or key in ("age", "x-varnish")) and (
            # Varnish and others write `Age: 0` on what they have just fetched.
            (key == "age" and said.isdecimal() and int(said) > 0)
            # LiteLLM sends it only with an answer of its cache.
            or (key == "x-litellm-cache-key" and said)
            # Varnish: its own request's number and that of the one which filled the cache.
            or (key == "x-varnish" and len(said.split()) > 1)
            or (_FLAG.fullmatch(key) and re.search(r"true|yes|hit|[1-9]", said))
            or (_STATUS.fullmatch(key) and _SERVED.search(said))
        ):
            return f"{name.lower()}: {value.strip()}"[:80]
    return ""


class KnownAnswers:
    """The answers that one client got. Engines give each answer an id of its own; a cache's answer
    has that of the answer it kept.
    """

    def __init__(self) -> None:
        self._known: set[int] = set()
        self._first = ""
        self.several = False
        """Whether there was more than one id."""

    def came_before(self, answer: Answer) -> bool:
        """Take in `answer`; True if the very same one came before, by its id, time and text."""
        if not answer.id:
            return False
        self._first = self._first or answer.id
        self.several = self.several or answer.id != self._first
        key = hash((answer.id, answer.created, answer.text))
        before = key in self._known
        if len(self._known) >= _MOST_KNOWN:
            self._known.clear()
        self._known.add(key)
        return before
