"""``lawful find``: which quantities a rule conserves on a network, and whether these are all."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from lawful.finder.circuits.search import CircuitSearch
    from lawful.finder.search import LawSearch

MAX_ROWS = 40
INTERRUPTED = 130


def find(
    widths: Annotated[
        list[int] | None, typer.Argument(metavar="[WIDTHS]...", help="Layer sizes, inputs first: 2 3 1.")
    ] = None,
    module: Annotated[
        str | None,
        typer.Option("--module", metavar="MODULE:FACTORY", help="A function that returns a small nn.Module instead."),
    ] = None,
    shape: Annotated[
        str | None, typer.Option("--shape", metavar="SHAPE", help="Of the module's input, without the batch: 1,4.")
    ] = None,
    network: Annotated[
        str | None, typer.Option("--network", metavar="NAME", help="A built-in network: attention, conv, transformer …")
    ] = None,
    rule: Annotated[str, typer.Option("--rule", "-r", help="Learning rule: bp, fa, dfa, low-rank-fa:rank=1 …")] = "fa",
    activation: Annotated[
        str, typer.Option("--activation", "-a", help="linear, relu, leaky_relu, square, squared_relu, tanh, sigmoid.")
    ] = "relu",
    bias: Annotated[bool, typer.Option("--bias", help="A bias in every layer, the output included.")] = False,
    softmax: Annotated[bool, typer.Option("--softmax", help="Error signals sum to zero (cross-entropy).")] = False,
    degree: Annotated[int, typer.Option("--degree", help="Degree of the polynomial search.")] = 2,
    search: Annotated[
        bool | None,
        typer.Option("--search/--no-search", help="Search polynomials. Default: where named laws leave a gap."),
    ] = None,
    inputs: Annotated[
        Path | None,
        typer.Option("--inputs", metavar="FILE", help="Laws for these inputs only: a table of numbers, a row each."),
    ] = None,
    momentum: Annotated[bool, typer.Option("--momentum", help="Time-dependent laws of SGD with momentum.")] = False,
    weight_decay: Annotated[
        bool, typer.Option("--weight-decay", help="Time-dependent laws of SGD with weight decay.")
    ] = False,
    decay: Annotated[
        str | None,
        typer.Option(
            "--decay", metavar="R1,R2,…", help="Relative decay rates of the layers, e.g. 1,2,4: --weight-decay."
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="The seed of all random draws.")] = 0,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="Write the certificate (JSON) here.")
    ] = None,
    verify: Annotated[
        Path | None, typer.Option("--verify", metavar="FILE", help="Check a certificate with a second program.")
    ] = None,
    all_: Annotated[bool, typer.Option("--all", help=f"Print every law, not only the first {MAX_ROWS}.")] = False,
) -> None:
    """Find the conserved quantities of a learning rule, and certify that there are no others.

    The number of laws is bounded from above by an exact rank and from below by laws that are proved one by one; where
    both agree, these are all. Ctrl-C keeps what is known so far: it is printed, and written to --out.

    **Examples:**

    $ lawful find 2 3 1 --rule fa --activation linear

    $ lawful find 4 9 8 7 3 --rule dfa --bias --out laws.json

    $ lawful find --network attention-bias --rule kp

    $ lawful find --module my_models:tiny_convnet --shape 1,6 --rule fa

    $ lawful find --verify laws.json

    **Exit code:** 0 found or verified, 1 when a certificate is wrong, 2 for a wrong setting or file, 130 interrupted.
    """
    from rich.console import Console

    from lawful.errors import SettingError

    console = Console()
    if verify is not None:
        if widths or module or network or out:
            raise SettingError("--verify checks a certificate by itself; give nothing else to find")
        _verify(console, verify)
        return
    if sum(given is not None for given in (widths or None, module, network)) != 1:
        raise SettingError(
            "lawful find: expected layer sizes, inputs first, e.g. lawful find 2 3 1; "
            "or one of --module, --network, --verify"
        )
    if momentum and (weight_decay or decay is not None):
        raise SettingError("lawful find: --momentum and weight decay are counted apart; give one of them")
    if out is not None and out.is_dir():
        raise SettingError(f"--out: {out} is a folder; expected a file to write the certificate to")
    if out is not None and not out.absolute().parent.is_dir():
        raise SettingError(f"--out: no folder {out.absolute().parent} to write {out.name} to")
    from lawful.finder.search import find_laws

    timed = weight_decay or decay is not None
    options: dict[str, Any] = {"rule": rule, "degree": degree, "seed": seed, "search": search,
                                "output": "softmax" if softmax else "free"}  # fmt: skip
    mlp = {"inputs": None if inputs is None else _table(inputs),
            "geometry": "momentum" if momentum else "decay" if timed else "plain",
            "decay": None if decay is None else _rates(decay)}  # fmt: skip
    if shape is not None and module is None:
        raise SettingError("--shape is an option of --module; layer sizes and networks have their own")
    with _bar(console) as progress:
        if widths:
            found = find_laws(widths, activation=activation, bias=bias, progress=progress, **options, **mlp)
        else:
            if bias or activation != "relu":
                raise SettingError("--activation and --bias are options of layer sizes; a network has its own")
            chosen = _named(network) if network is not None else _made(str(module))
            found = find_laws(chosen, shape=_numbers(shape), progress=progress, **options, **mlp)
    _show(console, found, all_=all_, phase=progress.phase)
    if out is not None:
        from lawful.finder.certificate import save_certificate

        save_certificate(found, out)
        console.print(f"certificate: {out}", highlight=False, soft_wrap=True)
    if found.interrupted and not found.certified:
        raise typer.Exit(INTERRUPTED)


def _rates(text: str) -> list[int]:
    from lawful.errors import SettingError

    try:
        return [int(rate) for rate in text.split(",")]
    except ValueError as error:
        raise SettingError(f"--decay: expected whole numbers with commas between, e.g. 1,2,4; got {text!r}") from error


def _named(network: str) -> Any:
    from lawful.errors import SettingError
    from lawful.finder.circuits.networks import NETWORKS

    if network not in NETWORKS:
        raise SettingError(f"--network: expected one of {', '.join(NETWORKS)}; got {network!r}")
    return NETWORKS[network]()


def _made(text: str) -> Any:
    from torch import nn

    from lawful.factories import made_by

    return made_by(text, "--module", nn.Module, "an nn.Module")


def _numbers(text: str | None) -> list[int] | None:
    from lawful.errors import SettingError

    try:
        numbers = None if text is None else [int(part) for part in text.split(",")]
    except ValueError:
        numbers = [0]
    if numbers is not None and min(numbers) < 1:
        raise SettingError(f"--shape: expected whole numbers >= 1 separated by commas, such as 1,4; got {text!r}")
    return numbers


class _bar:
    """A progress bar while the block runs; calling it moves the bar."""

    def __init__(self, console: Console) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        self._progress = Progress(
            BarColumn(bar_width=30),
            TimeElapsedColumn(),
            TextColumn("[dim]{task.description}[/dim]"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("", total=1.0)
        self.phase = "preparing"

    def __enter__(self) -> _bar:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        from lawful.cli.console import print_error

        self._progress.stop()
        if kind is KeyboardInterrupt:
            print_error(f"interrupted while {self.phase}; there is nothing to keep yet")
            raise typer.Exit(INTERRUPTED) from None

    def __call__(self, fraction: float, text: str) -> None:
        from rich.markup import escape

        self.phase = text
        self._progress.update(self._task, completed=min(fraction, 1.0), description=escape(text))


def _table(path: Path) -> Any:
    import numpy as np

    from lawful.errors import SettingError

    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        if not lines:
            raise SettingError(f"--inputs: {path} is empty; expected one input a row")
        return np.loadtxt(lines, ndmin=2, delimiter="," if path.suffix == ".csv" else None)
    except (OSError, ValueError) as error:
        raise SettingError(f"--inputs: cannot read {path} as a table of numbers: {error}") from error


def _show(console: Console, found: LawSearch | CircuitSearch, *, all_: bool, phase: str) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table("law", "formula", box=None, pad_edge=False)
    shown = found.laws if all_ else found.laws[:MAX_ROWS]
    for law in shown:
        table.add_row(escape(law.name), escape(law.formula))
    if shown:
        console.print(table, highlight=False)
    if len(shown) < len(found.laws):
        console.print(f"… and {len(found.laws) - len(shown)} more (--all)", highlight=False)
    ranks = found.ranks[0].levels if found.ranks else []
    console.print(f"D = {found.dimension}, Lie rank {ranks} by bracket level, modulo a prime", highlight=False)
    if found.interrupted and not found.certified:
        console.print(
            f"interrupted while {phase}: what follows holds, but more might have been found",
            style="yellow", markup=False, highlight=False, soft_wrap=True,
        )  # fmt: skip
    console.print(str(found), style="bold green" if found.certified else "bold yellow", highlight=False, soft_wrap=True)
    if not found.certified and not found.interrupted:
        console.print(found.gap, highlight=False)


def _subject(content: Any) -> str:
    """What a certificate is about, in one line."""
    if "circuit" in content:
        circuit, softmax = content["circuit"], content["softmax"]
        kinds = ", ".join(dict.fromkeys(node["kind"] for node in circuit["nodes"]))
        what = f"{content['rule']}, {circuit['name']} ({len(circuit['nodes'])} nodes: {kinds})"
    else:
        system = content["system"]
        widths, softmax = "-".join(map(str, system["widths"])), system["softmax"]
        what = f"{system['rule']}, {widths} {system['activation']}" + ", biases" * any(system["biases"])
        what += "" if system["geometry"] == "plain" else f", {system['geometry']}"
        what += "" if system["inputs"] is None else f", for {len(system['inputs'])} inputs"
    says = "certified" if content["certified"] else f"at most {content['bound']}"
    return f"{what}{', softmax' * softmax}: {content['count']} laws, {says}"


def _verify(console: Console, path: Path) -> None:
    from lawful.finder.certificate import CIRCUIT_FORMAT, FORMAT, load_certificate
    from lawful.finder.circuits.verify import verify_circuit_certificate
    from lawful.finder.verify import verify_certificate

    programs = {FORMAT: verify_certificate, CIRCUIT_FORMAT: verify_circuit_certificate}
    content = load_certificate(path)
    with _bar(console) as progress:
        checks = programs[content["format"]](content, progress)
    console.print(_subject(content), highlight=False, markup=False, soft_wrap=True)
    for check in checks:
        mark = "[green]✓[/green]" if check.ok else "[red]✗[/red]"
        console.print(f"{mark} {check.what}: {check.detail}", highlight=False)
    if not all(check.ok for check in checks):
        console.print("the certificate does not stand", style="bold red")
        raise typer.Exit(1)
    console.print("the certificate stands", style="bold green")
