"""The training loop behind ``lawful train``: deterministic, checkpointed every epoch, resumable bitwise."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from lawful.attachment.attachment import attach
from lawful.data.base import DataSet
from lawful.data.registry import load_data
from lawful.errors import DivergenceError, SettingError
from lawful.rules.registry import parse_rule
from lawful.training import checkpoint
from lawful.training.alignment import gradient_angle
from lawful.training.models import build_model
from lawful.training.observer import Epoch, Observer
from lawful.training.settings import Settings, make_optimizer

_PROBE = 256
"""Examples on which the alignment angle is measured."""


class Training:
    """A model, its rule and optimizer on a data set, after some epochs.

    Args:
        settings: what to train.
        data: the data set, if it is loaded already.

    Attributes:
        model: the model, with the rule attached.
        attachment: the rule on it.
        history: one record per epoch so far.
    """

    def __init__(self, settings: Settings, data: DataSet | None = None) -> None:
        self.settings = settings
        self.data = (data or load_data(settings.data)).limited(settings.examples)
        torch.manual_seed(settings.seed)
        self.model = build_model(settings.model, self.data)
        self.attachment = attach(self.model, parse_rule(settings.rule))
        self.optimizer = make_optimizer(settings.optimizer, self.model.parameters(), settings.lr)
        self.attachment.follow(self.optimizer)
        self.history: list[Epoch] = []

    def run(self, out: Path | None = None, observers: Sequence[Observer] = ()) -> list[Epoch]:
        """Train up to ``settings.epochs`` epochs; with ``out``, write a checkpoint there before and after every epoch.

        Raises:
            DivergenceError: the loss is no longer finite.
        """
        for observer in observers:
            observer.started(len(self.history), self.settings.epochs)
        try:
            if out is not None and not self.history:
                self.save(out)
            while len(self.history) < self.settings.epochs:
                self.history.append(self._epoch(len(self.history) + 1, observers))
                if out is not None:
                    self.save(out)
                for observer in observers:
                    observer.finished(self.history[-1])
        finally:
            for observer in observers:
                observer.closed()
        return self.history

    def save(self, out: Path) -> None:
        """Write a checkpoint, then ``history.json``; both are whole at every moment."""
        state = {
            "settings": self.settings.as_dict(),
            "history": [record.as_dict() for record in self.history],
            "model": dict(self.model.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "attachment": self.attachment.state_dict(),
            "random": checkpoint.random_state(),
        }
        checkpoint.save(state, checkpoint.folder_for(out, len(self.history)))
        checkpoint.prune(out)
        partial = out / ".history.json.partial"
        partial.write_text(json.dumps(state["history"], indent=1), encoding="utf-8")
        os.replace(partial, out / "history.json")

    def restore(self, folder: Path) -> None:
        """Go on from a checkpoint, bitwise as if nothing had happened."""
        state = checkpoint.load(folder)
        self.settings.check_continues(Settings(**state["settings"]))
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.attachment.load_state_dict(state["attachment"])
        self.history = [Epoch(**record) for record in state["history"]]
        checkpoint.restore_random_state(state["random"])

    def accuracy(self) -> float:
        """Share of the test targets that the model predicts."""
        self.model.eval()
        with torch.no_grad():
            parts = zip(self.data.x_test.split(512), self.data.y_test.split(512), strict=True)
            right = sum(int((self.model(x).argmax(-1) == y).sum()) for x, y in parts)
        self.model.train()
        return right / self.data.y_test.numel()

    def _step(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """One optimizer step; the loss before it."""

        def closure() -> torch.Tensor:
            self.optimizer.zero_grad()
            loss = self._loss(self.model, x, y)
            loss.backward()
            return loss.detach()

        if isinstance(self.optimizer, torch.optim.LBFGS):  # asks for the loss again and again
            return self.optimizer.step(closure)  # pyright: ignore[reportReturnType]
        loss = closure()
        self.optimizer.step()
        return loss

    def _epoch(self, epoch: int, observers: Sequence[Observer]) -> Epoch:
        begin, total, seen = time.perf_counter(), 0.0, 0
        self.model.train()
        for x, y in self._batches(epoch):
            now = float(self._step(x, y))
            if not math.isfinite(now):
                raise DivergenceError(
                    f"the loss is {now} in epoch {epoch}: lower the learning rate (lr is {self.settings.lr:g})"
                )
            total, seen = total + now * len(x), seen + len(x)
            for observer in observers:
                observer.stepped(epoch, seen / len(self.data.x), now)
        x, y = self.data.x[:_PROBE], self.data.y[:_PROBE]
        angle = gradient_angle(self.model, lambda model: self._loss(model, x, y))
        return Epoch(epoch, total / seen, self.accuracy(), angle, time.perf_counter() - begin)

    def _batches(self, epoch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The epoch's order is a function of (seed, epoch), so that no position in a stream must be saved."""
        order = np.random.default_rng([self.settings.seed, epoch]).permutation(len(self.data.x))
        for index in torch.from_numpy(order).split(self.settings.batch):
            yield self.data.x[index], self.data.y[index]

    def _loss(self, model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        logits = model(x)
        expected = (*y.shape, self.data.outputs)
        if not isinstance(logits, torch.Tensor) or logits.shape != expected:
            got = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
            raise SettingError(f"model {self.settings.model!r} must return logits of shape {expected}; got {got}")
        return F.cross_entropy(logits.flatten(0, -2), y.flatten())


def open_run(settings: Settings, out: Path, *, resume: bool, data: DataSet | None = None) -> Training:
    """A new run in ``out``, or with ``resume`` the run that is there, continued from its newest checkpoint.

    Raises:
        SettingError: ``out`` holds a run and ``resume`` is False, or a run of other settings.
    """
    newest = checkpoint.latest(out)
    if newest is not None and not resume:
        raise SettingError(f"{out} holds a run already: add --resume to continue it, or choose another --out")
    training = Training(settings, data)
    if newest is not None:
        training.restore(newest)
    return training


def saved_settings(out: Path) -> Settings | None:
    """The settings of the run in ``out``, if there is one."""
    newest = checkpoint.latest(out)
    return None if newest is None else Settings(**checkpoint.load(newest)["settings"])
