"""How fast the laws of a model move under one rule's update, measured at random weights for a random error."""

from __future__ import annotations

import copy

import torch
from torch import nn

import lawful
from lawful.conservation.derive import laws_of

RULES = {
    "backprop": None,
    "fa": lawful.FeedbackAlignment(seed=1),
    "weight mirror": lawful.WeightMirror(seed=1),
    "kolen-pollack": lawful.KolenPollack(seed=1),
    "sign": lawful.UniformSignSymmetry(),
}


LIMIT = 1e-60
"""An eps that is as good as 0 in double precision, and positive, as batch norm asks of it."""


def at_limit(model):
    """A copy of a model in which the eps of every norm that keeps it as an attribute is as good as 0."""
    copied = copy.deepcopy(model)
    for module in copied.modules():
        for name in ("eps", "epsilon", "variance_epsilon"):
            if isinstance(vars(module).get(name), float) or (name == "eps" and isinstance(module, nn.RMSNorm)):
                setattr(module, name, LIMIT)
    return copied


class Flow:
    """Laws, weights and −Ẇ of a copy of ``model`` under ``rule``, for a random error signal at its output."""

    def __init__(self, model, x, rule="fa", *, output="free", limit=True, kwargs=None):
        torch.manual_seed(5)
        model = at_limit(model) if limit else copy.deepcopy(model)
        self.model = model = model.double()
        if RULES[rule] is not None:
            lawful.attach(model, RULES[rule])
        with torch.no_grad():
            for p in model.parameters():
                p.copy_(0.5 * torch.randn_like(p))
            for module in model.modules():
                if isinstance(module, nn.Embedding) and module.padding_idx is not None:
                    module.weight[module.padding_idx] = 0
        args, kwargs = x if isinstance(x, tuple) else (x,), kwargs or {}
        self.laws = laws_of(model, args, kwargs, output=output, identity=True)
        self.theta = {n: p.detach() for n, p in model.named_parameters()}
        self.g = self.gradients(x, output=output, kwargs=kwargs)

    def gradients(self, x, *, output="free", kwargs=None, seed=5):
        """−Ẇ for another input and another random error, at the same weights."""
        torch.manual_seed(seed)
        self.model.zero_grad()
        out = self.model(*(x if isinstance(x, tuple) else (x,)), **(kwargs or {}))
        out = out.logits if hasattr(out, "logits") else out
        error = torch.randn_like(out)
        out.backward(error - error.mean(-1, keepdim=True) if output == "softmax" else error)
        return {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in self.model.named_parameters()}

    def of(self, kind):
        """Law name -> law, of one kind."""
        return {law.name: law for law in self.laws.of_kind(kind)}

    def violation(self, law):
        """The rate, relative to the rate with every product counted by its absolute value.

        A shift law's rate is a sum of gradients: relative to the largest gradient of its module.
        """
        size = law.magnitude(self.theta, self.g)
        if law.kind == "shift":
            module = law.parameters[0].rpartition(".")[0]
            near = [g.abs().max() for n, g in self.g.items() if n.rpartition(".")[0] == module]
            size = size.clamp(min=float(max(near)))
        return float((law.rate(self.theta, self.g).abs() / torch.where(size > 0, size, 1.0)).max())

    def worst(self):
        """The largest violation over all laws."""
        return max(self.violation(law) for law in self.laws)

    def relative(self, rates, sizes):
        """Largest of rates ÷ sizes, for formulas written out in a test."""
        return float((rates.abs() / sizes).max())
