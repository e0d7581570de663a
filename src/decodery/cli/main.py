"""`decodery`: the commands, and how errors leave them.

Bad input is one line on standard error and exit code 2; Ctrl-C exits 130. An error that is not a
`DecoderyError` is a defect and keeps its traceback.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from decodery.cli import cache, doctor, methods, new_method, reproduce, trace, train
from decodery.cli.flags import generated_flags, with_flags
from decodery.cli.output import err
from decodery.cli.run import INTERRUPTED, run
from decodery.core.errors import DecoderyError

PANIC = 1


def make_app() -> typer.Typer:
    """The application, with flags generated from the registry as it is now."""
    app = typer.Typer(
        name="decodery",
        help="Every published way to decode from a generative model, on one engine.",
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
    )
    app.callback(invoke_without_command=True)(_top)
    app.command("run")(with_flags(run, generated_flags()))
    app.add_typer(methods.app, name="methods")
    app.command("reproduce")(reproduce.reproduce)
    app.add_typer(train.make_app(), name="train")
    app.add_typer(trace.app, name="trace")
    app.command("doctor")(doctor.doctor)
    app.add_typer(cache.app, name="cache")
    app.command("new-method")(new_method.new_method)
    return app


def _top(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        import decodery

        print(decodery.__version__)
    elif context.invoked_subcommand is None:
        print(context.get_help())


def main() -> None:
    """The console script."""
    sys.exit(run_command(sys.argv[1:]))


def run_command(arguments: list[str]) -> int:
    """Run a command line and return its exit code."""
    try:
        result = make_app()(arguments, standalone_mode=False)
    except DecoderyError as error:
        err.print(f"error: {_one_line(error)}", markup=False)
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        err.print("interrupted", markup=False)
        return INTERRUPTED
    except typer.Exit as stop:
        return stop.exit_code
    except BrokenPipeError:
        # The reader left; Python would complain again when it closes standard output.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PANIC
    except Exception as error:
        usage = _usage_error(error)
        if usage is None:
            raise
        err.print(f"error: {usage}", markup=False)
        return 2
    return result if isinstance(result, int) else 0


def _usage_error(error: Exception) -> str | None:
    """The message of a command line that could not be parsed, or None for anything else."""
    describe = getattr(error, "format_message", None)
    return _one_line(describe()) if callable(describe) else None


def _one_line(error: object) -> str:
    return " ".join(str(error).split())


if __name__ == "__main__":
    main()
