"""``lawful audit``: a training with its conservation laws on the ledger, and a report of what broke them."""

from __future__ import annotations

import shlex
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import typer

RUNS_DIR = "lawful-runs"


def audit(
    model: Annotated[
        str, typer.Option("--model", metavar="NAME", help="mlp, cnn, gru, transformer, or module:factory.")
    ] = "mlp",
    data: Annotated[
        str, typer.Option("--data", metavar="NAME", help="digits, mnist5k, fashion, mnist1d or text.")
    ] = "digits",
    rule: Annotated[str, typer.Option("--rule", metavar="RULE", help="bp, fa, usf, kp, …; fa:seed=1.")] = "fa",
    optimizer: Annotated[
        str, typer.Option("--optimizer", metavar="NAME", help="Any of torch.optim: sgd:momentum=0.9.")
    ] = "sgd",
    lr: Annotated[float, typer.Option("--lr", metavar="X", help="Learning rate.")] = 0.05,
    epochs: Annotated[int, typer.Option("--epochs", "-n", metavar="N", help="Passes over the data.")] = 5,
    batch: Annotated[int, typer.Option("--batch", metavar="N", help="Examples in a step.")] = 64,
    examples: Annotated[
        int | None, typer.Option("--examples", metavar="N", help="Training examples to use. [all]")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Of weights, order and dropout.")] = 0,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="DIR", help=f"Where to write. Default: {RUNS_DIR}/audit-HASH.")
    ] = None,
) -> None:
    """Train a model with every conservation law on a ledger, and report what broke conservation, and when.

    The answer is printed: for every law whether it was kept (to rounding), moved, or broken (by more than 1 %), when,
    and by which causes: finite steps, weight decay, momentum, preconditioning. Where the rule guarantees an alignment
    ⟨W, B⟩, the answer says how much is guaranteed now and at which step it will be used up.

    The folder DIR gets report.html (read this), claims.json, figures/ and trajectories. The pictures: how far every law
    has moved; the laws with the form that theory predicts laid over them; the budget by cause; the distance from
    backpropagation layer by layer; the guarantee. The run is in float64, so that the books close to rounding.
    Interrupted, the same command goes on after the last whole epoch.

    **Examples:**

    $ lawful audit    (feedback alignment on digits by plain SGD: nothing is broken)

    $ lawful audit --rule fa:init=aligned    (with a guaranteed alignment, and a forecast)

    $ lawful audit --optimizer sgd:momentum=0.9 --lr 0.02    (momentum, with the predicted form)

    $ lawful audit --rule bp --optimizer sgd:weight_decay=0.02    (decay, with the predicted form)

    $ lawful audit --optimizer adam --lr 0.001    (preconditioning: split, but no form is known)

    $ lawful audit --model transformer --data text --examples 500 --optimizer adam --lr 0.001

    **Exit code:** 0 when the rule keeps its laws and the books close, 1 when not, 2 for a wrong setting or a run that
    diverged.
    """
    from rich.console import Console

    from lawful.cli.progress import watching
    from lawful.experiments.audit import PAPER, Settings
    from lawful.experiments.run import run_paper
    from lawful.experiments.spec import Spec
    from lawful.reports.audit import audit_page
    from lawful.reports.claims import CHECKS, summary
    from lawful.reports.report import write_report
    from lawful.reports.terminal import claims_table, words_table

    settings = Settings(model, data, rule, optimizer, lr, epochs, batch, examples, seed)
    spec = Spec(PAPER.id, settings, seed)
    root = out or Path(RUNS_DIR) / f"audit-{spec.digest[:12]}"
    console = Console()
    console.print(f"{model} on {data} by {rule} with {optimizer}", style="bold", highlight=False)
    with watching(console, list(PAPER.stages)) as watcher:
        run = run_paper(PAPER, spec, root, jobs=1, watcher=watcher)
    with console.status("drawing the report"):
        report = write_report(run, command=_command(settings), compose=audit_page)
    (section,) = run.sections
    console.print(f"\n{section.measured}\n".replace("**", ""), highlight=False, markup=False, soft_wrap=True)
    for table in section.tables:
        console.print(words_table(table, console.width))
    if not run.ok:
        console.print(claims_table(run.claims, console.width, CHECKS))
    console.print(summary(run.claims, CHECKS), style="bold green" if run.ok else "bold red", highlight=False)
    console.print(f"report: {report}", highlight=False, soft_wrap=True)
    if not run.ok:
        raise typer.Exit(1)


def _command(settings: Any) -> str:
    """The shell line that gives this run again."""
    words = ["lawful", "audit"]
    for field in fields(settings):
        value = getattr(settings, field.name)
        if value is not None:
            words += [f"--{field.name}", f"{value:g}" if isinstance(value, float) else str(value)]
    return shlex.join(words)
