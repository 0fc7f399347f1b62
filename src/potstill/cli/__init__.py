"""The ``potstill`` command. Only parses, calls and prints; torch is loaded by the commands that need it."""

from __future__ import annotations

from typing import Annotated

import typer

from potstill.cli import doctor, evaluate, export, init, label, plan, report, run, runs, store
from potstill.cli.guard import guarded, run_app

# The plain help starts in half the time of the boxed one, and can be piped and searched.
app = typer.Typer(
    name="potstill",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from potstill import __version__

        typer.echo(f"potstill {__version__}")
        raise typer.Exit


@app.callback()
def _potstill(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and stop.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Turn a trained model into a small one that is measured, exported and explained.

    \b
    Start here:
      potstill init --task digits        write a recipe to start from
      potstill plan recipe.yaml          check it, and see what it will do and cost
      potstill run recipe.yaml           train, measure, export and report
    """


app.command()(guarded(init.init))
app.command()(guarded(plan.plan))
app.command()(guarded(label.label))
app.command()(guarded(run.run))
app.command()(guarded(evaluate.evaluate))
app.command()(guarded(export.export))
app.command()(guarded(report.report))
app.command()(guarded(runs.runs))
app.command()(guarded(doctor.doctor))
app.add_typer(store.app)


def main() -> None:
    """Run the command line; the entry point of the ``potstill`` script."""
    run_app(app)
