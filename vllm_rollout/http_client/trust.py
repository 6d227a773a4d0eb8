"""Certificates of authorities that the suite trusts: one TLS context for every client.

`SSL_CERT_FILE` (or `REQUESTS_CA_BUNDLE`) and `SSL_CERT_DIR` stand in place of the machine's own, as
curl has it; the policy's `ca_file` beside those. Where Prometheus or notifications have a `ca_file`
of their own, nothing else is trusted there.
"""

import os
import ssl
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

_trusted_also: list[str] = []


def trust_also(ca_file: str | None) -> None:
    """Have clients that are made without a `ca_file` of their own trust its certificates, too.

    Raises:
        OSError: it cannot be used.
    """
    if ca_file:
        ssl.create_default_context(cafile=ca_file)
    _trusted_also[:] = [ca_file] if ca_file else []


def trusted_also() -> str:
    """The file given to `trust_also`; empty without one."""
    return next(iter(_trusted_also), "")


def tls_context(
    ca_file: Path | str | None = None,
    *,
    new: Callable[..., ssl.SSLContext] = ssl.create_default_context,
) -> ssl.SSLContext:
    """The context that a client verifies servers by; `ca_file` has the only authorities then.

    `new` makes an empty one: gevent has its own.

    Raises:
        OSError: a file that is named cannot be used.
    """
    if ca_file:
        return new(cafile=str(ca_file))
    file = os.environ.get("SSL_CERT_FILE") or os.environ.get("REQUESTS_CA_BUNDLE") or ""
    folder = os.environ.get("SSL_CERT_DIR") or ""
    also = trusted_also()
    changed = tuple(Path(each).stat().st_mtime_ns for each in (file, folder, also) if each)
    return _shared(file, folder, also, new, changed)


@lru_cache(maxsize=4)
def _shared(
    file: str,
    folder: str,
    also: str,
    new: Callable[..., ssl.SSLContext],
    _changed: tuple[int, ...],
) -> ssl.SSLContext:
    """Shared by clients, because reading all authorities takes longer than a request."""
    if file or folder:
        context = new(cafile=file or None, capath=folder or None)
    else:
        import certifi

        # The machine's own and the well-known ones: a slim image has none of its own.
        context = new()
        context.load_verify_locations(cafile=certifi.where())
    if also:
        context.load_verify_locations(cafile=also)
    return context
