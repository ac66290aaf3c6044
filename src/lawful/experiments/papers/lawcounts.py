"""How many quantities learning rules conserve: certified counts, most of them published nowhere else."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lawful.experiments.claims import Claim
from lawful.experiments.paper import Paper, Progress
from lawful.experiments.ranges import check_ranges
from lawful.experiments.records import Figure, Line, Panel, Section
from lawful.finder.circuits.networks import NETWORKS
from lawful.finder.circuits.nodes import Mask
from lawful.finder.circuits.search import CircuitSearch, find_circuit_laws
from lawful.finder.families import FAMILIES
from lawful.finder.formulas import linear_direct_feedback, linear_feedback_alignment
from lawful.finder.search import LawSearch, find_laws

ARCHITECTURES: tuple[tuple[int, ...], ...] = (
    (3, 4, 1),
    (3, 4, 3),
    (3, 4, 2, 1),
    (2, 3, 3, 2),
    (3, 2, 2, 3),
    (2, 3, 2, 3, 2),
)
"""Depth 2 to 4, one to three outputs, hidden layers wider and narrower than the output."""

ACTIVATIONS = ("linear", "relu", "leaky_relu")


@dataclass(frozen=True)
class LawCountSettings:
    """Sizes of the random samples.

    Args:
        networks: random networks in each comparison with a formula or with published counts.
        max_width: largest width drawn for ReLU nets.
        max_linear_width: largest width drawn for linear nets.
    """

    networks: int = 50
    max_width: int = 9
    max_linear_width: int = 5

    def validate(self) -> None:
        """Check ranges.

        Raises:
            SettingError: a value out of range.
        """
        check_ranges(self, {"networks": (1, 10_000), "max_width": (2, 12), "max_linear_width": (2, 12)})


def _random_widths(rng: np.random.Generator, low: int, high: int) -> tuple[int, ...]:
    return tuple(int(n) for n in rng.integers(low, high + 1, rng.integers(3, 6)))


def backprop(settings: LawCountSettings, seed: int, progress: Progress) -> Section:
    """The published counts for the gradient, certified again."""
    rng = np.random.default_rng(seed)
    linear, relu = [], []
    for number in range(settings.networks):
        progress.update(number / settings.networks, "backpropagation")
        linear.append(
            find_laws(_random_widths(rng, 2, settings.max_linear_width), rule="bp", activation="linear", seed=seed)
        )
        widths = _random_widths(rng, 2, settings.max_width)
        relu.append(find_laws(widths, rule="bp", activation="relu", bias=bool(number % 2), seed=seed))
    one_a_neuron = all(found.count == sum(found.architecture.widths[1:-1]) for found in relu)
    source = "Marcotte, Gribonval & Peyré 2023, Section 5"
    return Section(
        id="backprop",
        title="Backpropagation: the published counts",
        paper_says="On every linear and ReLU network tried, the balancedness laws are all the laws of the gradient "
        "flow: the Lie algebra has no more room. The published code takes hours.",
        measured=f"The same for {2 * settings.networks} random networks, now as a certificate: exact rank modulo a "
        "prime from above, laws expanded to zero symbolically from below.",
        claims=[
            Claim.true(
                "backprop.linear.certified", source, "on random linear nets the matrix laws are all laws",
                all(f.certified for f in linear), measured=f"{sum(f.certified for f in linear)} of {len(linear)}",
            ),
            Claim.true(
                "backprop.relu.certified", source, "on random ReLU nets the neuron laws are all laws",
                all(f.certified for f in relu), measured=f"{sum(f.certified for f in relu)} of {len(relu)}",
            ),
            Claim.true(
                "backprop.relu.one-per-neuron", source, "there is exactly one law for each hidden neuron", one_a_neuron,
            ),
        ],
    )  # fmt: skip


def _with_formula(
    id: str,
    rule: str,
    formula: Callable[[Sequence[int], bool], int],
    settings: LawCountSettings,
    seed: int,
    progress: Progress,
) -> list[Claim]:
    """Random linear nets, counted and compared with a closed formula."""
    rng = np.random.default_rng([seed, 1])
    agree = certified = 0
    total = settings.networks
    for number in range(total):
        progress.update(number / total, rule)
        widths = _random_widths(rng, 1, settings.max_linear_width)
        bias = bool(number % 2)
        found = find_laws(widths, rule=rule, activation="linear", bias=bias, seed=seed + number)
        agree += found.count == formula(widths, bias)
        certified += found.certified
    return [
        Claim.true(
            f"{id}.certified", "no publication", "every count is certified", certified == total,
            measured=f"{certified} of {total}",
        ),
        Claim.true(
            f"{id}.formula", "no publication", "the closed formula gives every count", agree == total,
            measured=f"{agree} of {total}",
        ),
    ]  # fmt: skip


def deep_linear_fa(settings: LawCountSettings, seed: int, progress: Progress) -> Section:
    """The dimension formula of the exact solution, and what replaces it in narrow nets."""
    return Section(
        id="deep-linear-fa",
        title="Deep linear feedback alignment",
        paper_says="The exact solution has $n_0 m + (L-1)m(m-1)/2$ free coordinates: an upper bound of the rank.",
        measured="The bound is attained whenever all hidden widths are at least m, at any depth (proved: "
        "docs/law-counts.md); with narrower layers the formula below, a proved lower bound of the number of laws, "
        "gives the count. Every second network has biases, which add m to the rank.",
        equations=[FA_FORMULA],
        claims=_with_formula("deep-linear-fa", "fa", linear_feedback_alignment, settings, seed, progress),
    )


def deep_linear_dfa(settings: LawCountSettings, seed: int, progress: Progress) -> Section:
    """The same for direct feedback."""
    return Section(
        id="deep-linear-dfa",
        title="Deep linear direct feedback alignment",
        paper_says="Direct feedback has the counts of feedback alignment when every hidden width is at least m.",
        measured="With narrower layers it has fewer laws than feedback alignment, by the formula below, a proved "
        "lower bound of the number of laws (docs/law-counts.md). Every second network has biases, which add m to the "
        "rank.",
        equations=[DFA_FORMULA],
        claims=_with_formula("deep-linear-dfa", "dfa", linear_direct_feedback, settings, seed, progress),
    )


FA_FORMULA = (
    r"D - n_0\rho_1 - \sum_{i<L}\left[n_i(\rho_{i+1}-\rho_i)+\tfrac{\rho_i(\rho_i-1)}{2}\right],\quad"
    r"\rho_i=\min(n_i,\dots,n_{L-1},m)"
)
DFA_FORMULA = (
    r"\sum_{i<L}\left[\nu_i n_{i-1}+\tfrac{s_i(s_i+1)}{2}-\tfrac{\nu_i(\nu_i+1)}{2}\right],\quad "
    r"\nu_i=n_i-\min(n_i,m),\quad s_i=n_i-\min(n_i,m-\min(n_{i+1},m))"
)


def rows(seed: int) -> Iterator[LawSearch]:
    """The table rule × activation × architecture × bias, one search a row."""
    for rule in FAMILIES:
        for activation in ACTIVATIONS:
            for widths in ARCHITECTURES:
                for bias in (False, True):
                    found = find_laws(widths, rule=rule, activation=activation, bias=bias, seed=seed)
                    assert isinstance(found, LawSearch)
                    yield found


def summary(found: LawSearch) -> str:
    """``3-4-1: 7``, or ``3-4-1: 0 to 9`` where bound and count differ."""
    widths = "-".join(map(str, found.architecture.widths))
    return f"{widths}: {found.count}" + ("" if found.certified else f" to {found.bound}")


def rules(settings: LawCountSettings, seed: int, progress: Progress) -> Section:
    """The table of all rules; of its rows only backpropagation's are published."""
    groups: dict[tuple[str, str, bool], list[LawSearch]] = {}
    total = len(FAMILIES) * len(ACTIVATIONS) * len(ARCHITECTURES) * 2
    for number, found in enumerate(rows(seed + 1)):
        progress.update(number / total, str(found))
        key = (found.rule, found.architecture.activation, found.architecture.biases[0])
        groups.setdefault(key, []).append(found)
    claims = []
    for (rule, activation, bias), searches in groups.items():
        done = all(found.certified for found in searches)
        with_bias = "bias" if bias else "no-bias"
        words = "every count is certified" if done else "every count is certified or bounded on both sides"
        claims.append(
            Claim.true(
                f"rules.{rule}.{activation.replace('_', '-')}.{with_bias}",
                "Marcotte, Gribonval & Peyré 2023" if rule == "bp" else "no publication",
                f"{FAMILIES[rule].title}, {activation}, {with_bias}: {words}",
                all(found.count <= found.bound for found in searches),
                measured=", ".join(map(summary, searches)),
            )
        )
    certified = sum(found.certified for searches in groups.values() for found in searches)
    return Section(
        id="rules",
        title="Every rule",
        paper_says="No publication counts the laws of feedback alignment, direct feedback alignment, Kolen-Pollack or "
        "the sign rules; of these rows only backpropagation's are known.",
        measured=f"{certified} of {total} counts are certified, the others bounded from both sides.",
        claims=claims,
        figures=[_by_rule(groups)],
    )


DRAWN = ("kp", "fa", "bp", "dfa", "mdfa", "sign-fa", "drtp")
"""The rules of the figure; the counts of ρ-FA are those of FA."""


def _by_rule(groups: Mapping[tuple[str, str, bool], Sequence[LawSearch]]) -> Figure:
    """How many laws each rule has on each network without biases."""

    def panel(activation: str, title: str) -> Panel:
        alike: dict[tuple[int, ...], list[str]] = {}  # rules with equal counts are one line
        for rule in DRAWN:
            alike.setdefault(tuple(found.count for found in groups[rule, activation, False]), []).append(rule)
        lines = [
            Line(", ".join(names), np.arange(1, len(counts) + 1), np.array(counts), style=f"{marker}-")
            for marker, (counts, names) in zip("os^vDx*", alike.items(), strict=False)
        ]
        return Panel(title, "network", "independent laws", lines)

    drawn = [found for (rule, _, bias), row in groups.items() if rule in DRAWN and not bias for found in row]
    certified = all(found.certified for found in drawn)
    sure = "Every count is certified." if certified else "Counts that are not certified are lower bounds."
    numbered = ", ".join(f"{i}: {'-'.join(map(str, widths))}" for i, widths in enumerate(ARCHITECTURES, start=1))
    return Figure(
        id="laws-by-rule",
        title="How many laws a rule has",
        caption=f"Networks without biases, inputs first: {numbered}. {sure} Through linear layers "
        "feedback alignment conserves at least what backpropagation does; with ReLU both have one law for each hidden "
        "neuron, and direct feedback alignment one for each neuron of the last hidden layer. Kolen-Pollack's state "
        "includes B, and every entry of W - B is conserved.",
        panels=[panel("linear", "linear"), panel("relu", "ReLU")],
    )


PUBLISHED = "Marcotte, Gribonval & Peyré 2025"
"""Laws of gradient flow for convolutions, residual networks and attention; nothing on feedback rules."""

CIRCUIT_RULES = ("bp", "fa", "kp", "usf", "frsf")


def circuit_rows(names: Sequence[str], seed: int) -> Iterator[tuple[str, CircuitSearch]]:
    """The table rule × network; sign rules where there is no ReLU."""
    for name in names:
        circuit = NETWORKS[name]()
        relu = any(isinstance(node, Mask) for node in circuit.nodes)
        for rule in CIRCUIT_RULES[: 3 if relu else 5]:
            yield name, find_circuit_laws(circuit, rule=rule, seed=seed)


def _circuit_claims(names: Sequence[str], stage: str, seed: int, progress: Progress) -> list[Claim]:
    claims = []
    for name, found in circuit_rows(names, seed):
        progress.update(len(claims) / (4 * len(names)), str(found))
        claims.append(
            Claim.true(
                f"{stage}.{found.rule}.{name}",
                PUBLISHED if found.rule == "bp" and stage != "norms" else "no publication",
                f"{FAMILIES[found.rule].title}, {found.network}, D = {found.dimension}: the laws found are all",
                found.certified,
                measured=str(found.count) if found.certified else f"{found.count} to {found.bound}",
            )
        )
    return claims


SHARING = tuple(name for name in NETWORKS if name.startswith(("conv", "residual", "rnn", "gated")))
ATTENTION = tuple(name for name in NETWORKS if "attention" in name)
NORMS = tuple(name for name in NETWORKS if "norm" in name or name.startswith("transformer"))


def sharing(settings: LawCountSettings, seed: int, progress: Progress) -> Section:
    """Convolutions, residual streams, unrolled recurrence, gates."""
    return Section(
        id="sharing",
        title="Shared weights, identity paths, gates",
        paper_says="Channel laws hold through convolutions, residual streams and recurrence.",
        measured="In small networks they are all the laws: one a channel or hidden unit, the matrix laws of the "
        "stream, and weights that move only along the feedback where the stream is wider than the output.",
        claims=_circuit_claims(SHARING, "sharing", seed, progress),
    )


def attention(settings: LawCountSettings, seed: int, progress: Progress) -> Section:
    """Softmax and linear attention."""
    return Section(
        id="attention",
        title="Attention",
        paper_says="Per head the query-key matrix law, the value-output matrix law, and constant key biases.",
        measured="They are all the laws of backpropagation; a fixed B adds those of the value and output biases. "
        "Linear attention has one law more without biases, and fewer with them, as no row of its weights sums to one.",
        equations=[
            r"W_QW_Q^\top+b_Qb_Q^\top-W_KW_K^\top-b_Kb_K^\top",
            r"W_VW_V^\top+b_Vb_V^\top-B_O^\top W_O-W_O^\top B_O",
        ],
        claims=_circuit_claims(ATTENTION, "attention", seed, progress),
    )


def norms(settings: LawCountSettings, seed: int, progress: Progress) -> Section:
    """RMS, layer and batch norm, and a pre-norm transformer, with generic ε and with ε = 0."""
    return Section(
        id="norms",
        title="Normalisation",
        paper_says="½(γ² + β²) − Ψ of the readers for every norm; in front of it the norm of all writers for ε → 0, "
        "and for a centring norm the column sums of each writer.",
        measured="They are all the laws. A generic ε > 0 takes exactly the scale laws away: one for the whole stream "
        "of a transformer, one a channel in front of batch norm.",
        claims=_circuit_claims(NORMS, "norms", seed, progress),
    )


def optimisers(settings: LawCountSettings, seed: int, progress: Progress) -> Section:
    """What weight decay and momentum leave: time-dependent laws."""
    claims = []
    cases: tuple[tuple[str, str, str, str, tuple[int, ...] | None, int], ...] = (
        ("decay.bp", "bp", "relu", "decay", None, 3),
        ("decay.kp", "kp", "relu", "decay", None, 6),
        ("decay.fa", "fa", "relu", "decay", None, 0),
        ("decay.fa.doubling", "fa", "relu", "decay", (1, 2), 3),
        ("decay.fa.linear", "fa", "linear", "decay", None, 4),
        ("decay.fa.linear.doubling", "fa", "linear", "decay", (1, 2), 7),
        ("decay.bp.linear.doubling", "bp", "linear", "decay", (1, 2), 1),
        ("momentum.bp", "bp", "relu", "momentum", None, 0),
        ("momentum.fa", "fa", "relu", "momentum", None, 0),
        ("momentum.bp.linear", "bp", "linear", "momentum", None, 3),
        ("momentum.fa.linear", "fa", "linear", "momentum", None, 10),
    )
    for number, (id, rule, activation, geometry, rates, expected) in enumerate(cases):
        progress.update(number / len(cases), f"{rule}, {geometry}")
        found = find_laws((2, 3, 1), rule=rule, activation=activation, geometry=geometry, decay=rates, seed=seed)
        at = "" if rates is None else " at rates " + ", ".join(map(str, rates))
        what = f"{FAMILIES[rule].title} (2, 3, 1) {activation} under {geometry}{at}"
        claims.append(
            Claim.true(
                f"optimisers.{id}",
                "no publication",
                f"{what}: {expected} time-dependent laws, certified",
                found.certified and found.count == expected,
                measured=f"{found.count} of at most {found.bound}",
            )
        )
    return Section(
        id="optimisers",
        title="Weight decay and momentum",
        paper_says="With decay λ on everything the laws of backpropagation and Kolen-Pollack shrink like e^{-2λt}.",
        measured="Multiplied by e^{2λt} they are laws again, and there are no others; uniform decay breaks feedback "
        "alignment's law, whose two parts have different degrees, and decay that doubles from layer to layer keeps it. "
        "Momentum breaks every neuron law and gives linear layers an angular momentum instead.",
        equations=[
            r"\frac{d}{dt}\left(e^{2\lambda t}q_j\right)=0",
            r"\frac{d}{dt}\,e^{\gamma t}\left(\dot W_iW_i^\top-B_{i+1}^\top\dot W_{i+1}-\mathrm{transpose}\right)=0",
        ],
        claims=claims,
    )


PAPER = Paper(
    id="lawcounts",
    title="How many quantities do learning rules conserve?",
    citation="New here; the method extends Marcotte, Gribonval & Peyré, Abide by the Law and Follow the Flow, "
    "NeurIPS 2023",
    settings=LawCountSettings,
    quick={"networks": 10},
    stages={
        "backprop": backprop,
        "deep-linear-fa": deep_linear_fa,
        "deep-linear-dfa": deep_linear_dfa,
        "rules": rules,
        "sharing": sharing,
        "attention": attention,
        "norms": norms,
        "optimisers": optimisers,
    },
)
