"""Text from outside (servers, pods, calendars), made fit to be shown and kept.

All of it passes here: `shown` makes a line of it where it comes in, `without_secrets` or
`printable` is asked again before anything is kept, and `printable` before anything is shown.
"""

import os
import re
from base64 import b64encode
from collections.abc import Iterable, Mapping
from typing import Any, NewType
from urllib.parse import quote, urlsplit

Printable = NewType("Printable", str)
"""Text from outside that `shown` has made: one line, of a stated length, without secrets and
without instructions to a terminal or to a CI system."""

NOTHING = Printable("")
LONGEST = 300
HIDDEN = "[redacted]"

# What a terminal or a parser could take for an instruction: control characters but tab and
# newline, line separators, text-direction overrides, and halves of surrogate pairs, which UTF-8
# cannot hold.
_UNPRINTABLE = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)
# What GitHub (`::error::` at a line's start, spaces before it or not; `##[` anywhere), Azure
# (`##vso[`) and TeamCity (`##teamcity[`) take out of a step's output for a command.
_CI_COMMAND = re.compile(r"(?m)(^[^\S\n]*):(?=:[A-Za-z][\w-]*(?:[^\S\n][^\n]*)?::)|()#(?=#\w*\[)")

_SHORTEST = 6
_SECRET_NAME = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)$", re.IGNORECASE)
_KEY = r"(?:key|token|secret|password|passwd|credentials?)"
# Neither the FILE of our own `sign-off --key FILE`, nor what was hidden, and then escaped for rich.
_VALUE = r"(?!FILE\b|\\\[)[^\s'\",\]\[]+"
# Whatever stands before or after, these are secrets.
_SHAPES = (
    re.compile(
        r"(?i)(\bauthorization['\"]?\s*[:=]\s*['\"]?(?:(?:basic|bearer|digest|token)\s+)?)[^\s'\",]+"
    ),
    re.compile(r"(://)[^\s/?#@'\"<>]+(?=@(?!sha256:))"),
    re.compile(
        r"(https://(?:hooks\.slack(?:-gov)?\.com|[\w.-]*webhook\.office\.com"
        r"|discord(?:app)?\.com/api/webhooks)/)[^\s'\"<>]+"
    ),
    re.compile(r"()\beyJ[\w-]{6,}\.[\w-]{6,}(?:\.[\w-]*)?"),
    re.compile(
        r"()\b(?:hf_[A-Za-z0-9]{12,}|sk-[\w-]{12,}|gh[pousr]_[A-Za-z0-9]{20,}"
        r"|github_pat_\w{20,}|glpat-[\w-]{16,}|xox[a-z]-[\w-]{10,}|nvapi-[\w-]{20,})"
    ),
    re.compile(r"(?s)()-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*-----|\Z)"),
    re.compile(r"(?i)([?&](?:\w+[-_])?(?:key|token|secret|password|sig|signature)=)[^\s&'\"<>]+"),
    re.compile(
        r"(?i)(\b(?:x-(?:api-key|auth-token)|(?:set-)?cookie)['\"]?\s*:\s*['\"]?)[^\s'\",]+"
    ),
    re.compile(rf"(?i)(--[\w-]*{_KEY}(?:['\"]?,\s*['\"]|=['\"]?|\s+['\"]?(?!-))){_VALUE}"),
    re.compile(
        r"(\b[A-Z0-9]+_[A-Z0-9_]*(?:KEY|TOKEN|SECRET|PASSWORD|PASSWD)"
        rf"(?:['\"]?\s*=\s*|['\"]\s*:\s*|:(?=\S))['\"]?){_VALUE}"
    ),
)
# These are in what a program prints, and may be plain words in a sentence.
_LOOSE_SHAPES = (
    re.compile(r"(?i)(\bbearer\s+)[^\s'\",]+"),
    re.compile(rf"(\b[A-Z0-9]+_[A-Z0-9_]*(?:KEY|TOKEN|SECRET|PASSWORD|PASSWD):\s+['\"]?){_VALUE}"),
    # `secret "x"` is Kubernetes' way to name one.
    re.compile(
        r"(?i)((?:(?:api|access|private)[-_]?key|token|password|secret|client-key-data)['\"]?"
        rf"(?:\s*[=:]\s*|(?<!secret)\s+(?=['\"]))(?!\[redacted\])\[?['\"]?){_VALUE}"
    ),
)
_own: set[str] = set()


def own_secret(value: str) -> str:
    """Take `value`, a key, token or webhook URL of the suite's own, out of all text from now on.

    Returns it, so that it stands where a secret is read.
    """
    forms = {value, quote(value, safe=""), b64encode(value.encode()).decode().rstrip("=")}
    if "://" in value:
        url = urlsplit(value)
        path = f"{url.path}?{url.query}" if url.query else url.path
        if not path.strip("/") and "@" not in url.netloc:
            return value  # an address alone is no secret, and is named in messages
        forms.add(path)
    if len(value) < _SHORTEST:
        return value
    _own.update(form for form in forms if len(form) >= _SHORTEST)
    return value


def secrets_in(environment: Mapping[str, str] = os.environ) -> list[str]:
    """Values of the environment variables that are named like secrets; very short ones left out."""
    return [
        value
        for name, value in environment.items()
        if _SECRET_NAME.search(name) and len(value) >= _SHORTEST
    ]


def without_secrets(text: str) -> str:
    """`text` without the suite's own secrets and without what has the form of one: what is safe to
    ask of sentences of the suite itself, too."""
    return _hidden(text, _own, _SHAPES)


def redact(text: str, secrets: Iterable[str] = ()) -> str:
    """Text of another program without secrets: the given, the suite's own, and what looks like one.

    Values of the environment variables that are named like secrets are among them.
    """
    known = {*secrets, *_own, *secrets_in()}
    return _hidden(text, known, (*_SHAPES, *_LOOSE_SHAPES))


def _hidden(text: str, secrets: Iterable[str], shapes: Iterable[re.Pattern[str]]) -> str:
    # The longest first: one secret may be part of another.
    for secret in sorted(filter(None, secrets), key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    for shape in shapes:
        text = shape.sub(rf"\g<1>{HIDDEN}", text)
    return text


def inert(text: str) -> str:
    """`text` with what a terminal or a CI system takes for an instruction shown as �."""
    text = _UNPRINTABLE.sub("\ufffd", text.replace("\r\n", "\n"))
    return _CI_COMMAND.sub("\\g<1>\ufffd", text)


def printable(text: str) -> str:
    """`text` without secrets, and with control characters, bidirectional overrides, lone surrogates
    and commands to a CI system shown as �."""
    return inert(without_secrets(text))


def all_printable(value: Any) -> Any:
    """JSON data with every text in it made printable: what is printed for programs, or kept."""
    if isinstance(value, dict):
        return {all_printable(key): all_printable(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [all_printable(inner) for inner in value]
    return printable(value) if isinstance(value, str) else value


def one_line(text: str) -> str:
    """`text` made printable, on one line."""
    return inert(" ".join(printable(text).split()))


def shown(text: str, longest: int = LONGEST) -> Printable:
    """Text from outside on one printable line of at most `longest` characters."""
    # Cut first, as the rest may be any size; but no secret is cut in two, so that half is left.
    window = text[: longest + _LONGEST_SECRET]
    line = " ".join(inert(redact(window)).split())
    cut = len(line) > longest or len(text) > len(window)
    return Printable(inert(line[: longest - 2]) + " …" if cut else line)


_LONGEST_SECRET = 4096


def public_address(url: str) -> Printable:
    """Scheme, host and port of a URL: its path and query may hold a token."""
    found = re.match(r"(?:[^/?#\s]*://)?[^/?#\\\s]*", url)
    return shown(re.sub(r"(//|^)[^/]*@", r"\1", found.group() if found else ""))
