"""Text from outside: no secrets, and no instruction to a terminal or a CI system."""

from datetime import UTC, datetime

import pytest
from rich.markup import escape
from rich.table import Table

from vllm_rollout.cli.console import LiveReporter, make_console
from vllm_rollout.model import text as door
from vllm_rollout.model.evidence import Step
from vllm_rollout.model.text import (
    HIDDEN,
    LONGEST,
    own_secret,
    printable,
    public_address,
    redact,
    secrets_in,
    shown,
)


@pytest.fixture(autouse=True)
def _forget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "_own", set())


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("Authorization: Bearer abc.DEF-123", "abc.DEF-123"),
        ("non-default args: {'api_key': ['sk-none'], 'port': 8000}", "sk-none"),
        ("vllm serve --api-key='s3cret' --port 8000", "s3cret"),
        ("HF_TOKEN=hf_abcdefghijklmnop", "hf_abcdefghijklmnop"),
        ("cloning with hf_abcdefghijklmnop", "hf_abcdefghijklmnop"),
        ('{"password": "hunter2"}', "hunter2"),
        ("vllm serve --api-key s3cret --port 8000", "s3cret"),
        ("args: ['--api-key', 's3cret']", "s3cret"),
        ("AWS_SECRET_ACCESS_KEY=wJalr/XUtnFEMI", "wJalr/XUtnFEMI"),
        ('"AWS_SECRET_ACCESS_KEY": "wJalr/XUtnFEMI"', "wJalr/XUtnFEMI"),
        ("  AWS_SECRET_ACCESS_KEY: wJalr/XUtnFEMI", "wJalr/XUtnFEMI"),
        ("aws_secret_access_key = wJalr/XUtnFEMI", "wJalr/XUtnFEMI"),
        ("Set-Cookie: session=d2Fs0123; Path=/", "d2Fs0123"),
        ("Authorization: Basic dXNlcjpodW50ZXIy", "dXNlcjpodW50ZXIy"),
        ("{'Authorization': 'Bearer abcdefg'}", "abcdefg"),
        ("postgres://ada:hunter2@db:5432/x", "hunter2"),
        ("GET https://hunter2@git.example.com/x", "hunter2"),
        ("got eyJhbGciOiJI.eyJzdWIiOiIx.SflKxwRJ-x", "SflKxwRJ"),
        ("to https://hooks.slack.com/services/T0/B0/XyZ", "XyZ"),
        ("to https://x.logic.azure.com/workflows/7/invoke?api-version=1&sig=XyZ", "XyZ"),
        ("GET /v1/models?access_token=XyZ&page=1", "XyZ"),
        ("x-api-key: hunter2", "hunter2"),
        ("docker login nvcr.io with nvapi-abcdefghijklmnopqrstu", "abcdefghijkl"),
        ("client-key-data: LS0tLS1CRUdJTg==", "LS0tLS1CRUdJTg"),
        ("-----BEGIN PRIVATE KEY-----\nhunter2\n-----END PRIVATE KEY-----\n", "hunter2"),
        ("-----BEGIN OPENSSH PRIVATE KEY-----\nhunter2", "hunter2"),
    ],
)
def test_what_looks_like_a_secret_is_hidden(text: str, secret: str) -> None:
    assert secret not in redact(text)
    assert HIDDEN in redact(text)
    assert redact(redact(text)) == redact(text)
    assert f"[{HIDDEN}" not in redact(f"--api-key={HIDDEN} {text}")


def test_known_values_are_hidden_wherever_they_stand() -> None:
    assert redact("a longer-value b long c", ["long", "longer-value"]) == (
        f"a {HIDDEN} b {HIDDEN} c"
    )


def test_an_own_secret_is_taken_out_of_all_text_in_every_form() -> None:
    url = own_secret("https://hooks.example.com/room/7?sig=ab%20c+d")
    quoted = "https%3A%2F%2Fhooks.example.com%2Froom%2F7%3Fsig%3Dab%2520c%2Bd"
    for text in (url, quoted, "POST /room/7?sig=ab%20c+d HTTP/1.1"):
        assert "room" not in printable(text)
        assert "room" not in shown("." * (LONGEST - 30) + text), "cut in two"
    own_secret(""), own_secret("ab")  # too short to be one
    address = own_secret("http://127.0.0.1:9093/")
    assert printable(f"no answer at {address}") == f"no answer at {address}"
    assert printable("abbey") == "abbey"


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("https://ada:pw@cal.example.com/private-abc/basic.ics?k=v", "https://cal.example.com"),
        ("http://127.0.0.1:9/", "http://127.0.0.1:9"),
    ],
)
def test_a_url_is_named_by_its_host(url: str, said: str) -> None:
    assert public_address(url) == said


@pytest.mark.parametrize(
    "text",
    [
        "it asks for a bearer key (HTTP 401), and VLLM_ROLLOUT_API_KEY is not set",
        "VLLM_ROLLOUT_API_KEY: put the key there. ::1 and ::ffff:10.0.0.1 are addresses",
        "::1 is an address",
        "Secret 'vllm-key' is missing: bearer token, --set KEY=VALUE, --evidence 0123",
        "http://llama-2-7b-staging.system.svc.cluster.local:8000/v1/models a@b",
        "vllm-rollout sign-off m --evidence 0123 --key FILE (or --reject). Sign by --key FILE; or",
        escape(f"--api-key {HIDDEN} --port 8000"),
    ],
)
def test_sentences_of_the_suite_stay(text: str) -> None:
    assert printable(text) == text


@pytest.mark.parametrize(
    "order",
    ["::error::x", "  ::set-output name=a::b", "a\n::debug::x", "a ##[error]x", "##vso[task]",
     "##teamcity[x]"],
)  # fmt: skip
def test_a_command_to_a_ci_system_is_text(order: str) -> None:
    made = printable(order)
    assert "\ufffd" in made
    assert not any(line.lstrip().startswith("::") for line in made.splitlines())
    assert "##" not in made
    for text in ("a::b", "std::vector", "## heading", "C#"):
        assert printable(text) == text


def test_a_console_cuts_no_secret_in_two_and_shows_that_there_was_one(
    capsys: pytest.CaptureFixture[str],
) -> None:
    console, secret = make_console(), own_secret("half-of-it.other-half")
    narrow = Table("why", box=None)
    narrow.add_column(overflow="fold", width=12)
    narrow.add_row("", f"it is {secret}")
    console.print(narrow)
    console.print(f"[bold]it is[/] {escape(f'[a] {secret}')}")
    printed = capsys.readouterr().out
    assert "half" not in printed
    assert "it is [a] [redacted]" in printed


def test_a_console_passes_on_no_instruction_in_what_it_prints(
    capsys: pytest.CaptureFixture[str],
) -> None:
    console, order = make_console(), "\x1b]52;c;ZQ==\x07\n::error::x\n##[group]y\u202e"
    table = Table(order, box=None)
    table.add_row(order)
    console.print(order, markup=False, soft_wrap=True)
    console.print(table)
    with LiveReporter(console) as live:
        live.step(Step(at=datetime.now(UTC), title=order, detail=order))
        live.gate(order)
        live.progress(order)
    printed = capsys.readouterr().out
    assert "52;c;ZQ==" in printed
    assert not {"\x1b", "\x07", "\u202e"} & set(printed)
    assert "##[" not in printed
    assert not any(line.lstrip().startswith("::") for line in printed.splitlines())


@pytest.mark.parametrize(
    "text",
    [
        "max_tokens=64 tokenizer='llama' total_tokens: 12",
        "GET /health 200",
        "",
        'Error: secret "hf-token" not found',
        "pulled docker-pullable://vllm@sha256:0123456789ab",
    ],
)
def test_ordinary_log_lines_stay(text: str) -> None:
    assert redact(text) == text


def test_secrets_are_found_by_the_names_of_variables() -> None:
    environment = {"API_KEY": "0123456789", "DB_PASSWORD": "ab", "MONKEY_HOME": "/home/monkey"}
    assert secrets_in(environment) == ["0123456789"]
