"""``lawful reproduce``: a paper's statements, measured."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from lawful.experiments.run import Run

RUNS_DIR = "lawful-runs"
DEFAULT_PAPER = "robertson2023"


def reproduce(
    paper: Annotated[str, typer.Argument(metavar="[PAPER]", help="Which paper; see --list.")] = DEFAULT_PAPER,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="DIR", help=f"Where to write. Default: {RUNS_DIR}/PAPER-HASH."),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Smaller nets, fewer seeds: a first look.")] = False,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="The seed of all random draws.")] = 0,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", "-s", metavar="KEY=VALUE", help="Change one setting; may be repeated."),
    ] = None,
    jobs: Annotated[int, typer.Option("--jobs", "-j", metavar="N", help="Worker processes.")] = 2,
    list_: Annotated[bool, typer.Option("--list", help="Name the papers and exit.")] = False,
    settings: Annotated[bool, typer.Option("--settings", help="Name the paper's settings and exit.")] = False,
) -> None:
    """Measure every statement of a paper, and write a report that shows what holds and what does not.

    The folder DIR gets report.html (read this), claims.json, figures/ (PNG and SVG), trajectories
    (stages/*/trajectories.npz), spec.json and environment.json. The same settings and seed give the same claims.json,
    byte for byte. A run that was interrupted resumes when the same command is given again.

    **Examples:**

    $ lawful reproduce    (all of robertson2023)

    $ lawful reproduce --settings    (what --set may change)

    $ lawful reproduce --quick --out first-look

    $ lawful reproduce --set n=30 --set lr=0.01 --seed 7

    **Exit code:** 0 when every claim holds or corrects the paper, 1 when one fails, 2 for a wrong setting or folder.
    """
    from lawful.experiments.papers import PAPERS, load_paper

    if list_:
        for name, (title, _) in PAPERS.items():
            typer.echo(f"{name}  {title}")
        return

    from rich.console import Console

    from lawful.experiments.run import run_paper
    from lawful.experiments.spec import make_spec

    chosen = load_paper(paper)
    if settings:
        _print_settings(chosen.settings)
        return
    spec = make_spec(chosen, assignments or (), seed=seed, quick=quick)
    root = out or Path(RUNS_DIR) / f"{chosen.id}-{spec.digest[:12]}"
    console = Console()

    from lawful.cli.progress import watching

    console.print(f"[bold]{chosen.title}[/bold]\n{chosen.citation}\n", highlight=False)
    with watching(console, list(chosen.stages)) as watcher:
        run = run_paper(chosen, spec, root, jobs=jobs, watcher=watcher)
    _show(console, run)
    if not run.ok:
        raise typer.Exit(1)


def _print_settings(kind: type) -> None:
    from lawful.experiments.spec import setting_types, show_value, type_name

    default = kind()
    for key, declared in setting_types(kind).items():
        typer.echo(f"{key}={show_value(getattr(default, key))}  ({type_name(declared)})")


def _show(console: Console, run: Run) -> None:
    """Writes the report, then prints the claims and where everything is."""
    from lawful.reports.claims import summary
    from lawful.reports.report import write_report
    from lawful.reports.terminal import claims_table

    with console.status("drawing the report"):
        report = write_report(run)
    console.print(claims_table(run.claims, console.width))
    console.print(summary(run.claims), style="bold green" if run.ok else "bold red", highlight=False)
    console.print(f"report: {report}", highlight=False, soft_wrap=True)
