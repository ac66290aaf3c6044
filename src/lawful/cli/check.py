"""``lawful check``: the laws as a test of a backward pass, yours or anybody's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from torch import nn

    from lawful.checking import LawCheck


def check(
    factory: Annotated[
        str, typer.Argument(metavar="MODULE:FACTORY", help="A function without arguments, in a file on the path.")
    ],
    rule: Annotated[
        str | None, typer.Option("--rule", metavar="RULE", help="Attach this rule first: bp, fa, kp, … fa:seed=1.")
    ] = None,
    input_: Annotated[
        str | None,
        typer.Option("--input", metavar="SHAPE", help="Check on random inputs of this shape: 4,3,32,32, batch first."),
    ] = None,
) -> None:
    """Test the backward pass of a feedback rule by the laws it must obey, where gradcheck cannot.

    FACTORY returns a model; or (model, inputs) when the input cannot be guessed; or (model, inputs, feedback), feedback
    being a dict from weight names to the matrices B that the model's own backward pass claims to use. A model that
    carries a rule already (by lawful.attach) is checked with that rule; without any it must be backpropagation.
    All is done on a copy in float64.

    **Examples:**

    $ lawful check my_models:resnet --rule fa --input 2,3,32,32

    $ lawful check my_models:attached_transformer

    $ lawful check torchvision.models:resnet18 --rule usf --input 2,3,64,64

    $ lawful check their_code:model_with_inputs_and_feedback

    **Exit code:** 0 when every identity holds, 1 when one is violated or none could be checked, 2 for a wrong setting.
    """
    from rich.console import Console

    from lawful.checking import lawcheck
    from lawful.rules.registry import parse_rule

    model, args, feedback = _made(factory)
    if input_ is not None:
        args = (_random_input(input_),)
    chosen: Any = None if rule is None else parse_rule(rule)
    result = lawcheck(model, args, rule=chosen, feedback=feedback)
    _show(Console(), result)
    if not result.ok:
        raise typer.Exit(1)


def _made(text: str) -> tuple[nn.Module, Any, Mapping[str, torch.Tensor] | None]:
    """What the factory returns, as (model, inputs, feedback)."""
    from torch import nn

    from lawful.errors import SettingError
    from lawful.factories import made_by

    expected = "a model, (model, inputs) or (model, inputs, feedback)"
    made = made_by(text, "MODULE:FACTORY", object, expected)
    parts: list[Any] = list(made) if isinstance(made, tuple) else [made]
    if not 1 <= len(parts) <= 3 or not isinstance(parts[0], nn.Module):
        got = ", ".join(type(part).__name__ for part in parts)
        raise SettingError(f"MODULE:FACTORY {text!r}: expected {expected} from it; got ({got})")
    model, args, feedback = [*parts, (), None][:3] if len(parts) == 1 else [*parts, None][:3]
    return model, args, feedback


def _random_input(text: str) -> torch.Tensor:
    import torch

    from lawful.errors import SettingError

    try:
        shape = [int(part) for part in text.split(",")]
    except ValueError:
        shape = []
    if not shape or min(shape) < 1:
        raise SettingError(f"--input: expected positive integers separated by commas, such as 4,3,32,32; got {text!r}")
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def _show(console: Any, result: LawCheck) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table("check", "where", "relative violation", "", box=None, pad_edge=False)
    for row in result.table:
        fine = row.violation <= result.tolerance
        verdict = "[green]✓ ok[/green]" if fine else "[red]✗ violated[/red]"
        table.add_row(row.what, escape(row.where), f"{row.violation:.1e}", verdict)
    console.print(table, highlight=False)
    for site, why in result.laws.reasons.items():
        console.print(f"[dim]no law for {escape(site)}: {escape(why)}[/dim]", highlight=False, soft_wrap=True)
    for what in result.laws.unknown:
        console.print(f"[yellow]unknown operation: {escape(what)}[/yellow]", highlight=False, soft_wrap=True)
    for what in result.unchecked:
        console.print(f"[yellow]unchecked: {escape(what)}[/yellow]", highlight=False, soft_wrap=True)
    bad = sum(not row.violation <= result.tolerance for row in result.table)
    summary = (
        "nothing could be checked: no site of this model has a law"
        if not result.table
        else f"{len(result.table)} checks, {bad} violated (tolerance {result.tolerance:g})"
    )
    console.print(summary, style="bold green" if result.ok else "bold red", highlight=False)
