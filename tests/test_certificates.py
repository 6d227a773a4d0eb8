"""Certificates: whom every client trusts, and what is said of a server that is not trusted."""

import hashlib
import re
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest.mock import patch
from urllib.parse import urlsplit

import httpx
import pytest
import trustme
from cryptography import x509
from support.every_client import CLIENTS
from support.hostile import hostile, sends
from support.stub_server import Stub, serving
from support.world import STAGING

from loadtests import connections
from vllm_rollout.http_client import HttpError, trust_also
from vllm_rollout.judge import Outcome
from vllm_rollout.model.errors import RolloutError, UnreachableError
from vllm_rollout.report.gitlab_note import TOKEN, post_note
from vllm_rollout.rollout.ci_token import read_keys
from vllm_rollout.rollout.delivery import NotDeliveredError
from vllm_rollout.serving import Servers, health_and_a_token
from vllm_rollout.settings import Settings, load_settings
from vllm_rollout.variables import LOAD_CA_FILE

ROOT = Path(__file__).parents[1]
OK = sends(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")


@dataclass(frozen=True)
class Company:
    """An authority that nobody knows, by file and by folder."""

    authority: trustme.CA
    file: str
    folder: str

    def server(self, name: str = "127.0.0.1") -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.authority.issue_cert(name).configure_cert(context)
        return context

    def trusted_by(self, client: ssl.SSLContext) -> bool:
        """Shake hands in memory."""
        there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
        server = self.server().wrap_bio(there, back, server_side=True)
        asking = client.wrap_bio(back, there, server_hostname="127.0.0.1")
        for _ in range(3):
            for each in (asking, server):
                try:
                    each.do_handshake()
                except ssl.SSLWantReadError:
                    pass
                except ssl.SSLCertVerificationError:
                    return False
        return asking.version() is not None


@cache
def authority() -> trustme.CA:
    return trustme.CA(organization_name="company")


@pytest.fixture(autouse=True)
def company(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Company]:
    for each in ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", LOAD_CA_FILE):
        monkeypatch.delenv(each, raising=False)
    pem = authority().cert_pem.bytes()
    file, folder = tmp_path / "company.pem", tmp_path / "certificates"
    file.write_bytes(pem)
    folder.mkdir()
    subject = x509.load_pem_x509_certificate(pem).subject
    # OpenSSL finds one in a folder by the hash of its name in small letters.
    small = x509.Name([x509.NameAttribute(each.oid, each.value.lower()) for each in subject])
    digest = hashlib.sha1(small.public_bytes()[2:]).digest()
    (folder / f"{digest[3::-1].hex()}.0").write_bytes(pem)
    yield Company(authority(), str(file), str(folder))
    trust_also(None)


def settings(**changes: str) -> Settings:
    overrides = {"environments.staging.replicas": "1", **changes}
    return load_settings(base_url="http://x", overrides=overrides)


# ------------------------------------------------------- whom the clients trust


def _keys(_url: str, _seconds: float, _folder: Path) -> object:
    return read_keys("https://127.0.0.1:9/keys")


def _note(url: str, _seconds: float, _folder: Path) -> object:
    variables = {TOKEN: "of-a-test", "CI_API_V4_URL": url, "CI_PROJECT_ID": "1"}
    with patch.dict("os.environ", {**variables, "CI_MERGE_REQUEST_IID": "1"}):
        return post_note("m", "text")


ASKED = {**CLIENTS, "keys of CI tokens": _keys, "merge request": _note}
MADE_OTHERWISE = {
    "platform/kubernetes/port_forward.py",  # trusts what the kubeconfig names
    "platform/local/proxy.py",  # asks replicas of this machine by plain HTTP
    "simulator/running.py",  # asks itself
}
NAMED: dict[str, Callable[[pytest.MonkeyPatch, Company], None]] = {
    "SSL_CERT_FILE": lambda patch, found: patch.setenv("SSL_CERT_FILE", found.file),
    "SSL_CERT_DIR": lambda patch, found: patch.setenv("SSL_CERT_DIR", found.folder),
    "ca_file": lambda _patch, found: trust_also(found.file),
    "nothing": lambda _patch, _found: None,
}


@pytest.mark.parametrize("named", NAMED)
def test_every_client_trusts_the_authority_that_is_named(
    named: str, company: Company, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made: dict[str, ssl.SSLContext] = {}
    client = httpx.AsyncClient

    def make(name: str, **options: Any) -> httpx.AsyncClient:
        made[name] = options["verify"]
        return client(**options)

    NAMED[named](monkeypatch, company)
    for name, ask in ASKED.items():
        monkeypatch.setattr(httpx, "AsyncClient", partial(make, name))
        with suppress(RolloutError, NotDeliveredError, HttpError):
            ask("https://127.0.0.1:9", 5.0, tmp_path)
    # The load has a process of its own.
    if named == "ca_file":
        monkeypatch.setenv(LOAD_CA_FILE, company.file)
    load = connections.Connections(urlsplit("https://127.0.0.1:9"))
    made["load"] = load._tls
    trusting = {name for name, context in made.items() if company.trusted_by(context)}
    assert trusting == (set() if named == "nothing" else {*ASKED, "load"})


def test_every_client_is_made_in_the_one_place() -> None:
    made = re.compile(
        r"\b(?:httpx\.(?:Async)?Client|aiohttp\.ClientSession|urlopen|HTTPSConnection"
        r"|ssl\.(?:create_default_context|SSLContext|_create_\w+))\("
    )
    package = ROOT / "vllm_rollout"
    files = [*package.rglob("*.py"), *(ROOT / "loadtests").rglob("*.py")]
    found = {file for file in files if made.search(file.read_text(encoding="utf-8"))}
    own = {file for file in found if file.parent.name == "http_client"}
    rest = {str(file.relative_to(package)) for file in found - own}
    assert rest <= MADE_OTHERWISE


# ------------------------------------------ what is said of a server that cannot be asked


@contextmanager
def mute() -> Iterator[str]:
    """A server that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"https://127.0.0.1:{server.getsockname()[1]}"


@contextmanager
def plain() -> Iterator[str]:
    with serving(Stub()) as stub:
        yield stub.url.replace("http://", "https://")


@contextmanager
def asked_without(company: Company) -> Iterator[str]:
    with hostile(OK, context=company.server()) as url:
        yield url.replace("https://", "http://")


AUTHORITY = (
    "Name the file with your authority's certificates: `ca_file` in the policy, or SSL_CERT_FILE."
)
MISTAKES: dict[str, tuple[Callable[[Company], Any], str, str]] = {
    "an authority that nobody knows": (
        lambda company: hostile(OK, context=company.server()),
        (
            "nobody can be asked at {url}: its certificate is not trusted: unable to get local "
            "issuer certificate"
        ),
        AUTHORITY,
    ),
    "https:// of plain HTTP": (
        lambda _company: plain(),
        "nobody can be asked at {url}: it speaks no TLS (WRONG_VERSION_NUMBER)",
        "Write http:// in place of https://.",
    ),
    "https:// of a mute server": (
        lambda _company: mute(),
        "nobody can be asked at {url}: it takes connections and ends no TLS handshake within 1 s",
        "Write http:// in place of https:// if it speaks plain HTTP; else see why it hangs.",
    ),
    "http:// of TLS": (
        asked_without,
        "{url} speaks TLS, and was asked without",
        "Write https:// in place of http://.",
    ),
}


def health_of(url: str, found: Settings) -> tuple[Outcome, str, str]:
    """Outcome, reason and remedy of the gate, as the session has them of an error too."""
    gates = found.policy.environments["staging"].gates
    assert gates.health
    gate = gates.health.model_copy(update={"timeout": timedelta(seconds=1)})
    with ExitStack() as clients:
        servers = Servers.of(replace(found, base_url=url), STAGING, clients)
        try:
            verdict = next(health_and_a_token(servers, gate))
        except UnreachableError as error:
            return Outcome.INCONCLUSIVE, str(error), error.remedy
    return verdict.outcome, verdict.reason, verdict.remedy


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_scheme_or_certificate_that_is_wrong_is_named(mistake: str, company: Company) -> None:
    server, reason, remedy = MISTAKES[mistake]
    with server(company) as url:
        found = health_of(url, settings())
    assert found == (Outcome.INCONCLUSIVE, reason.format(url=url), remedy)


def test_with_ca_file_a_server_of_the_companys_is_gated(company: Company) -> None:
    with hostile(OK, context=company.server()) as url:
        found = health_of(url, settings(ca_file=company.file))
    assert found == (Outcome.PASS, "/health answered 200", "")


def test_a_certificate_for_another_host_is_no_matter_of_authorities(company: Company) -> None:
    with hostile(OK, context=company.server("other.example")) as url:
        _, reason, remedy = health_of(url, settings(ca_file=company.file))
    assert "certificate is not valid for '127.0.0.1'" in reason
    assert remedy.startswith("Name the host that the certificate is for")
