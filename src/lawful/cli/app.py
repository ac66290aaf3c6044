"""The typer app: one row a verb, and one place where errors become a line and an exit code.

A verb is a file here with a function of the same name; the file imports only typer and the standard library, and the
function imports what it needs when it is called. So ``lawful --help`` loads neither torch nor numpy.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Annotated, Any

import typer

import lawful
from lawful.cli.console import print_error
from lawful.errors import LawfulError

VERBS: dict[str, str] = {
    "reproduce": "lawful.cli.reproduce",
    "find": "lawful.cli.find",
    "train": "lawful.cli.train",
    "audit": "lawful.cli.audit",
    "check": "lawful.cli.check",
}
"""Verb -> the module whose function of that name is the command."""

RESUMING = {"reproduce", "audit"}
"""Verbs that go on where they were when the same command is given again."""

EXIT_ERROR = 2
EXIT_INTERRUPTED = 130
"""128 + SIGINT, as shells count."""

HELP = """
Train any PyTorch model with a feedback learning rule, and prove which quantities that training conserves.

**Start here:**

    lawful reproduce           the founding paper, claim by claim
    lawful reproduce --list    every paper that can be reproduced
    lawful VERB --help         what a verb does, with examples

**Exit codes:** 0 all is well · 1 a claim or check failed · 2 a setting or input is wrong · 130 interrupted.
"""

app = typer.Typer(
    name="lawful",
    help=HELP.replace("    lawful", "    $ lawful"),
    no_args_is_help=True,
    rich_markup_mode="markdown",
    # A programming error is reported best by Python's own traceback.
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"lawful {lawful.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options before the verb."""


def _guarded(command: Callable[..., Any]) -> Callable[..., Any]:
    """``command`` whose user errors are one line on stderr, and whose interruption says whether it can go on."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except LawfulError as error:
            print_error(f"error: {' '.join(str(error).split())}")
            raise typer.Exit(EXIT_ERROR) from None
        except KeyboardInterrupt:
            print_error("interrupted" + "; run the same command again to resume" * (command.__name__ in RESUMING))
            raise typer.Exit(EXIT_INTERRUPTED) from None

    return run


for _verb, _module in VERBS.items():
    app.command(_verb)(_guarded(getattr(importlib.import_module(_module), _verb)))


def main() -> None:
    """The entry point of the ``lawful`` script."""
    app()
