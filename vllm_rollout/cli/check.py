"""`vllm-rollout check`: what a server at a URL is and has, before any gate is run."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Annotated

import typer

from vllm_rollout.cli import options
from vllm_rollout.judge import Verdict, check, worst
from vllm_rollout.model.errors import ExitCode, UsageError
from vllm_rollout.model.load_plan import PATHS
from vllm_rollout.next_command import next_command
from vllm_rollout.report.formatting import verdict_text

if TYPE_CHECKING:
    from vllm_rollout.observe.client import InferenceClient

_FIRST_SECONDS, _REST_SECONDS, _MORE_SECONDS = 1.5, 2.5, 0.1
"""For the list of models, for all else at once, and for each further question: under 5 s."""
_METRICS = {
    True: "/metrics has vLLM's",
    False: "/metrics has none of vLLM's",
    None: "/metrics did not answer",
}


@options.about_releases
def check_command(
    url: Annotated[str, typer.Argument(metavar="URL", help="the server, e.g. http://gpu-1:8000")],
    model: Annotated[
        str | None, typer.Option("--model", help="the model (default: the first it serves)")
    ] = None,
    *,
    choice: options.Choice,
) -> None:
    """Say what answers at URL: health, key, models, APIs, one token, metrics. Changes nothing.

    Takes less than 5 s. Ends with 0 if it can be gated, with 1 if it gives no token, with 3 if the
    key or the address is not right, with 4 if nothing answers.
    """
    if choice.platform:
        raise UsageError("check asks a URL alone", remedy="Leave --platform out.")
    settings = choice.settings(base_url=url, needs_platform=False, models=(model,) if model else ())
    label = settings.labels.get(model, model) if model else None
    if settings.note:
        options.say(settings.note)
    outcomes = []
    said: set[str] = set()
    with settings.client(
        settings.base_url or url, settings.deployment(label or "any", settings.policy.order[0])
    ) as client:
        for name, verdict in _checks(client, label):
            first, *more = verdict_text(verdict).split("\n")
            options.say(f"{verdict.outcome.upper():12}  {name:9}  {first}")
            for line in more:
                if line not in said:
                    options.say(f"{'':25}{line}")
            said.update(more)
            if name != "metrics":  # no gate needs them
                outcomes.append(verdict.outcome)
        served = client.model
    code = worst(outcomes).exit_code
    if code is ExitCode.OK:
        where = ("--model", model or served, "--base-url", client.base_url)
        gates = next_command("pytest", "-m", settings.policy.order[0], *where)
        options.say(f"next: {gates}")
    raise typer.Exit(int(code))


def _checks(client: "InferenceClient", label: str | None) -> Iterator[tuple[str, Verdict]]:
    """Yield what is found, in the order in which one thing needs the other.

    Raises:
        UnreachableError: nothing answers.
    """
    from vllm_rollout.serving import health_verdict, models_verdict, unanswered

    listed = client.served_models(timeout_seconds=_FIRST_SECONDS)
    if label is None and listed.models:
        client.model = listed.models[0].name
    name = label or client.model
    limit = {"timeout_seconds": _REST_SECONDS}
    with ThreadPoolExecutor() as pool:
        health = pool.submit(client.health, **limit)
        metrics = pool.submit(client.has_metrics, **limit)
        asked = {
            api: pool.submit(client.ask, "Hello", max_tokens=1, api=api, **limit)  # type: ignore[arg-type]
            for api in PATHS
        }
    https = client.base_url.startswith("https://")
    yield "address", check(True, "its certificate is trusted" if https else "plain HTTP, no TLS")
    yield "health", health_verdict(client, health.result(), "Look at the server's log.")
    yield "models", models_verdict(client, name, listed)
    answers = {api: future.result() for api, future in asked.items()}
    has = [PATHS[api] for api, answer in answers.items() if answer.ok]
    text = f"answers at {' and '.join(has)}" if has else "none gave a token"
    yield "APIs", check(True if has else None, text)
    answer = answers[client.api]
    if answer.ok:
        yield "token", check(True, f"one token came in {answer.seconds:.3g} s")
    else:
        yield "token", unanswered(client, name, answer, seconds=_MORE_SECONDS)
    found = metrics.result()
    yield "metrics", check(None if found is None else True, _METRICS[found])
