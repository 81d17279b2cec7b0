"""The command line `d2dmoe`: convert a model of one's own, without a line of Python.

Commands import what computes when they run, so that help comes at once. What a user can mend is
one message on stderr and exit code 1; a wrong call is 2, an interrupted one 130.
"""

import warnings
from importlib import metadata
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from d2dmoe.cli import benchmark, calibrate, convert, evaluate, inspect, push
from d2dmoe.cli.failures import message_of


def _warn(message: Warning | str, *_where: Any, **_more: Any) -> None:
    typer.echo(f"warning: {message}", err=True)


class _Commands(TyperGroup):
    def invoke(self, ctx: Any) -> Any:
        try:
            with warnings.catch_warnings():
                warnings.showwarning = _warn
                return super().invoke(ctx)
        except KeyboardInterrupt:
            typer.echo("interrupted; no folder was left half-written", err=True)
            raise typer.Exit(130) from None
        except Exception as error:
            message = message_of(error)
            if message is None:  # a fault of ours, whose traceback helps
                raise
            typer.echo(f"error: {message}", err=True)
            raise typer.Exit(1) from None


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"d2dmoe {metadata.version('d2dmoe')}")
        raise typer.Exit


@app.callback()
def about(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Say the version."),
    ] = False,
) -> None:
    """Turn a dense Transformer into one that runs, for each token, only the experts it needs.

    The whole way, with a sentence encoder and texts of one's own:

    - `d2dmoe inspect sentence-transformers/all-MiniLM-L6-v2`
    - `d2dmoe convert sentence-transformers/all-MiniLM-L6-v2 sparse --data my.csv`
    - `d2dmoe calibrate sparse --data my.csv --flops-ratio 0.7`
    - `d2dmoe evaluate sparse --data my.csv`
    - `d2dmoe benchmark sparse --data my.csv`

    A model is a name of the Hugging Face hub, a folder of transformers or timm, timm:NAME or
    torchvision:NAME. Data are texts (csv, jsonl, json, parquet, txt) or a folder of images; each
    file is split by --seed, once and for all commands: convert learns from the training samples,
    calibrate chooses on validation samples, evaluate measures on test samples.

    Results go to stdout, progress to stderr; --json makes one JSON object of the results. Exit
    codes: 0 fine; 1 something to mend, said in one message on stderr; 2 a wrong call; 130
    interrupted.
    """


for command in (inspect, convert, calibrate, evaluate, benchmark, push):
    name = command.__name__.rpartition(".")[2]
    app.command(name, rich_help_panel=command.PANEL)(command.run)
