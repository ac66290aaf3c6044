"""``lawful train``: a model on a data set by a feedback rule."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

RUNS_DIR = "lawful-runs"


def train(
    model: Annotated[
        str | None, typer.Option("--model", metavar="NAME", help="mlp, cnn, gru, transformer, or module:factory. [mlp]")
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", metavar="NAME", help="digits, mnist5k, fashion, mnist1d or text. [digits]")
    ] = None,
    rule: Annotated[
        str | None, typer.Option("--rule", metavar="RULE", help="bp, fa, dfa, kp, … with options: fa:seed=1. [fa]")
    ] = None,
    optimizer: Annotated[
        str | None, typer.Option("--optimizer", metavar="NAME", help="Any of torch.optim: sgd:momentum=0.9. [adam]")
    ] = None,
    lr: Annotated[float | None, typer.Option("--lr", metavar="X", help="Learning rate. [0.001]")] = None,
    epochs: Annotated[
        int | None, typer.Option("--epochs", "-n", metavar="N", help="Passes over the data. [10]")
    ] = None,
    batch: Annotated[int | None, typer.Option("--batch", metavar="N", help="Examples in a step. [64]")] = None,
    examples: Annotated[
        int | None, typer.Option("--examples", metavar="N", help="Training examples to use. [all]")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", metavar="N", help="Of weights, order and dropout. [0]")] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="DIR", help=f"Where to write. [{RUNS_DIR}/train-MODEL-DATA-RULE-HASH]"),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in DIR (or start it).")] = False,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Log to DIR/tensorboard as well.")] = False,
) -> None:
    """Train a model with a feedback rule, and watch its gradients' angle to backpropagation.

    After every epoch DIR gets a checkpoint (safetensors and JSON) and history.json. A run killed at any moment loses at
    most the epoch it was in: --resume continues bitwise as if nothing had happened, with the settings it was started
    with; a larger --epochs prolongs it.

    **Examples:**

    $ lawful train --data digits --rule dfa --epochs 5

    $ lawful train --model cnn --data fashion --examples 10000 --rule usf --optimizer sgd:momentum=0.9 --lr 0.01

    $ lawful train --data digits --rule dfa --epochs 20 --resume    (the first example, prolonged)

    $ lawful train --out my-run --resume    (its settings are those of the run)

    $ lawful train --model my_models:resnet --data fashion --rule kp:decay=0.0001 --out my-run

    **Exit code:** 0 when trained, 2 for a wrong setting or a run that diverged.
    """
    from rich.console import Console

    from lawful.training.loop import open_run, saved_settings
    from lawful.training.progress import TerminalProgress
    from lawful.training.settings import Settings

    given: dict[str, Any] = {
        "model": model,
        "data": data,
        "rule": rule,
        "optimizer": optimizer,
        "lr": lr,
        "epochs": epochs,
        "batch": batch,
        "examples": examples,
        "seed": seed,
    }
    given = {name: value for name, value in given.items() if value is not None}
    saved = saved_settings(out) if resume and out is not None else None
    settings = Settings(**((saved.as_dict() if saved else {}) | given))
    names = map(_file_name, (settings.model, settings.data, settings.rule))
    root = out or Path(RUNS_DIR) / "-".join(["train", *names, settings.digest])
    console = Console()
    observers: list[Any] = [TerminalProgress(console)]
    if tensorboard:
        from lawful.training.integrations.tensorboard import TensorBoardLog

        observers.append(TensorBoardLog(root / "tensorboard"))
    training = open_run(settings, root, resume=resume)
    console.print(f"{settings.model} on {settings.data} by {settings.rule}", style="bold", highlight=False)
    training.run(root, observers)
    console.print(f"run: {root}", highlight=False, soft_wrap=True)


def _file_name(text: str) -> str:
    return "".join(character if character.isalnum() or character in "._" else "_" for character in text)
