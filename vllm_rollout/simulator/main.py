"""The command `simulate`: serves from this process until it is stopped."""

import asyncio
import inspect
import os
from pathlib import Path
from typing import Annotated

import typer

from vllm_rollout.model.errors import UsageError
from vllm_rollout.simulator.dials import DialError, Dials

API_KEY_VARIABLE = "VLLM_API_KEY"


def simulate(
    *,
    model: Annotated[str, typer.Option(help="served model name")] = "llama-2-7b",
    host: Annotated[str, typer.Option(help="address to listen on")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="port to listen on; 0 takes a free one")] = 8000,
    api_key_file: Annotated[
        Path | None,
        typer.Option(help=f"file of bearer keys, instead of {API_KEY_VARIABLE}"),
    ] = None,
    start_delay: Annotated[
        float, typer.Option(min=0, help="seconds until it listens, as if weights were loading")
    ] = 0.0,
    shutdown_timeout: Annotated[
        float, typer.Option(min=0, help="seconds that running requests get at the end")
    ] = 0.0,
    end_with_stdin: Annotated[
        bool, typer.Option("--end-with-stdin", help="end when standard input is closed")
    ] = False,
    **dials: str | None,
) -> None:
    """Serve as vLLM would, without a model, with a dial for every fault."""
    try:
        turned = Dials().turned({name: value for name, value in dials.items() if value is not None})
    except DialError as error:
        raise UsageError(
            f"wrong dial: {error}", remedy=f"The dials are {', '.join(Dials.model_fields)}."
        ) from None
    # Here, and not above: no other command needs an HTTP server.
    import uvloop

    from vllm_rollout.simulator.serving import serve

    serving = serve(
        model,
        turned,
        _api_keys(api_key_file),
        address=(host, port),
        start_delay=start_delay,
        shutdown_timeout=shutdown_timeout,
        end_with_stdin=end_with_stdin,
    )
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serving)


def _dial_options() -> list[inspect.Parameter]:
    """One option for each dial, so that the command line has no list of its own."""
    options = []
    for name, field in Dials.model_fields.items():
        switch = field.annotation is bool
        default = None if field.default is None or switch else str(field.default)
        option = typer.Option(
            *(["--" + name.replace("_", "-")] if switch else []),
            help=field.description,
            metavar=None if switch else "VALUE",
            show_default=default or False,
            rich_help_panel="Dials",
        )
        kind = (bool if switch else str) | None
        options.append(
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=None,
                annotation=Annotated[kind, option],
            )
        )
    return options


_signature = inspect.signature(simulate)
simulate.__signature__ = _signature.replace(  # type: ignore[attr-defined]
    parameters=[*list(_signature.parameters.values())[:-1], *_dial_options()]
)


def _api_keys(file: Path | None) -> tuple[str, ...]:
    """The bearer keys, separated by commas or line ends.

    Raises:
        UsageError: the file cannot be read or holds none.
    """
    if file is None:
        text = os.environ.get(API_KEY_VARIABLE, "")
    else:
        try:
            text = file.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(
                f"API key file {file} cannot be read: {error}",
                remedy="Name a text file with one key on each line.",
            ) from None
    keys = tuple(key.strip() for key in text.replace("\n", ",").split(",") if key.strip())
    if file is not None and not keys:
        raise UsageError(f"API key file {file} holds no key", remedy="Write one key on each line.")
    return keys
