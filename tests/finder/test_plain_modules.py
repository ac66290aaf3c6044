"""Modules that compute or learn something else than their layers say are refused by name."""

import pytest
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import lawful
from lawful import find_laws
from lawful.errors import SettingError


def two_layers(last=None):
    return nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2) if last is None else last)


class Doubled(nn.Module):
    def forward(self, x):
        return 2 * x


class Squared(nn.Linear):
    def forward(self, x):
        return super().forward(x) ** 2


def parametrized(layer):
    parametrize.register_parametrization(layer, "weight", Doubled())
    return layer


def hooked(layer, register):
    getattr(layer, register)(print)
    return layer


def replaced(layer):
    layer.forward = lambda x: x
    return layer


def computed(layer):
    weight = layer.weight.detach()
    del layer.weight
    layer.weight = weight
    return layer


REFUSED = {
    "weight_norm": (lambda: nn.utils.weight_norm(nn.Linear(3, 2)), r"2 \(Linear\) .* \(WeightNorm\)"),
    "pruned": (lambda: prune.random_unstructured(nn.Linear(3, 2), "weight", 0.5), "pre-hook"),
    "new weight_norm": (lambda: parametrizations.weight_norm(nn.Linear(3, 2)), "parametrization of its weight"),
    "parametrized": (lambda: parametrized(nn.Linear(3, 2)), "parametrization of its weight"),
    "replaced": (lambda: replaced(nn.Linear(3, 2)), "forward replaced"),
    "computed": (lambda: computed(nn.Linear(3, 2)), "computed weight"),
    "frozen": (lambda: nn.Linear(3, 2).requires_grad_(False), "frozen weight"),
    "empty": (lambda: nn.Linear(0, 2), r"empty weight of shape \(2, 0\)"),
    "lazy": (lambda: nn.LazyLinear(2), "no shape yet"),
    "subclass": (lambda: Squared(3, 2), "cannot read Squared at 2"),
    **{
        f"register_{hook}": (lambda hook=hook: hooked(nn.Linear(3, 2), f"register_{hook}"), rf"{what} \(print\)")
        for hook, what in (("forward_hook", "forward hook"), ("forward_pre_hook", "forward pre-hook"),
                           ("full_backward_hook", "backward hook"), ("full_backward_pre_hook", "backward pre-hook"))
    },
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:Lazy", "ignore:.*zero-element")
@pytest.mark.parametrize("name", REFUSED)
def test_hidden_work_is_refused_by_name(name):
    make, words = REFUSED[name]
    with pytest.raises(SettingError, match=words):
        find_laws(two_layers(make()), rule="fa")
    with pytest.raises(SettingError, match=words):
        find_laws(nn.Sequential(nn.Conv1d(1, 3, 1), nn.Flatten(), two_layers(make())), rule="fa", shape=(1, 1))


@pytest.mark.parametrize("at", ["", "1"])
def test_hooks_of_containers_and_activations_are_refused(at):
    model = two_layers()
    hooked(model.get_submodule(at), "register_forward_hook")
    with pytest.raises(SettingError, match="has a forward hook"):
        find_laws(model, rule="fa")


def test_a_bias_of_two_layers_is_refused():
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))
    model[2].bias = model[0].bias
    with pytest.raises(SettingError, match="2: a bias that is used twice"):
        find_laws(model, rule="fa")


@pytest.mark.parametrize("rule", [lawful.FeedbackAlignment(), lawful.DirectFeedbackAlignment()])
def test_attached_rules_are_no_hidden_work(rule):
    model = two_layers()
    lawful.attach(model, rule)
    assert find_laws(model, rule=rule.name).certified
