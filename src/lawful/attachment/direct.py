"""Direct rules on unedited modules: hooks cut the model into blocks, and one Function at the logits teaches them all.

A forward hook detaches each tapped block's output, so no error travels from block to block and that backward work is
never done. The hook at the output module passes the logits through one Function of many inputs, whose backward pass
turns the logits' error into every block's signal. The error is therefore the one that ``loss.backward()`` brings:
loss scaling, gradient accumulation and ``ignore_index`` are in it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import nn
from torch.autograd import forward_ad
from torch.utils._pytree import tree_leaves

from lawful.attachment.base import Attachment
from lawful.attachment.direct_graph import Lesson, Segment, audit
from lawful.attachment.direct_kernel import Tap, inject
from lawful.attachment.direct_taps import find_output, find_taps, is_affine
from lawful.errors import AttachmentError, CoverageError, SettingError
from lawful.rules.base import generator_for
from lawful.rules.direct_base import DirectRule

_PREFIX = "lawful_direct"


@dataclass
class _Pass:
    """One forward pass under way: the blocks that ran since the logits module last did."""

    taps: list[str] = field(default_factory=list)
    outputs: list[torch.Tensor] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)
    calls: dict[str, int] = field(default_factory=dict)

    def key(self, tap: str) -> str:
        """The tap's name, numbered from its second call in this pass on, as a shared module makes them."""
        call = self.calls.get(tap, 0)
        self.calls[tap] = call + 1
        return f"{tap}#{call}" if call else tap


@final
class DirectAttachment(Attachment):
    """Rules that send the output error straight to every block: δ_i = signal(e, D_i) ⊙ σ'(h_i).

    ``rules`` and ``feedback`` are keyed by tap: the dotted name of the block, with ``#1`` … appended for the second …
    call of a shared module. D_i is (outputs, out_i), out_i the features of the block's flattened output, so it is drawn
    in the first forward pass (from the seed and the tap's name alone). That pass's graph also fills ``coverage``.

    Attributes:
        taps: dotted names of the tapped modules.
        output: dotted name of the logits module.
    """

    rules: dict[str, DirectRule]

    def __init__(self, model: nn.Module, rule: DirectRule, *, strict: bool) -> None:
        super().__init__(model)
        self.rule = rule
        self.strict = strict
        self.output = find_output(model, rule.output)
        self.taps = find_taps(model, rule.taps, self.output)
        self.rules = dict.fromkeys(self.taps, rule)
        self.coverage = {name: "known after the first forward pass" for name, _ in model.named_parameters()}
        self._keys: dict[str, tuple[str, ...]] = {}
        self._audited = False
        self._pass: _Pass | None = None
        self._handles: list[Any] = [model.register_forward_pre_hook(_Open(self), prepend=True)]
        for tap in self.taps:
            hook = _Cut(self, tap)
            self._handles.append(model.get_submodule(tap).register_forward_hook(hook, with_kwargs=True))
        self._handles.append(model.get_submodule(self.output).register_forward_hook(_AtOutput(self)))
        self._handles.append(model.register_forward_hook(_Close(self)))
        self._act(lambda _: True)  # the rule's admissible set holds from the first forward pass on
        _forget_compiled()
        self._enter()

    @property
    def feedback(self) -> Mapping[str, torch.Tensor]:
        """The live D_i by tap, once drawn; writing into one changes the next backward pass."""
        return {name: self.feedback_of(name) for name in self._keys}

    def state(self, name: str) -> dict[str, torch.Tensor]:
        """The live state of one tap: {"D": D_i} once it is drawn, {} before the first forward pass."""
        module, call = self._place(name)
        self._check_attached(name)
        return {key: getattr(module, _buffer(call, key)) for key in self._keys.get(name, ())}

    def feedback_of(self, name: str) -> torch.Tensor:
        """D_i of one tap, (outputs, out_i)."""
        state = self.state(name)
        if "D" not in state:
            raise AttachmentError(f"the feedback of {name!r} is drawn in the first forward pass: run one first")
        return state["D"]

    def remove(self) -> None:
        """Restore backpropagation bitwise; parameters, and so optimizer states, are untouched."""
        for handle in self._handles:
            handle.remove()
        for name, keys in self._keys.items():
            module, call = self._place(name)
            for key in keys:
                delattr(module, _buffer(call, key))
        _forget_compiled()
        self._leave()

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Restore :meth:`state_dict`, also before the first forward pass; changes nothing if it raises."""
        self._check_fingerprint(saved)
        states: dict[str, dict[str, torch.Tensor]] = {}
        for full, tensor in saved["state"].items():
            name, _, key = full.rpartition(".")
            states.setdefault(name, {})[key] = tensor.detach().clone()
        for name, state in states.items():
            self._register(name, state)
        self.steps = int(saved["steps"])

    def _entries(self) -> dict[str, Any]:
        return {"rule": repr(self.rule), "taps": list(self.taps), "output": self.output}

    def _learners(self) -> Iterator[tuple[DirectRule, nn.Parameter]]:
        """A rule that projects must see every step of the weights it projects."""
        if type(self.rule).project is not DirectRule.project:
            yield from ((self.rule, weight) for weight in self._downstream())

    @torch.no_grad()
    def _act(self, is_stepped: Callable[[torch.Tensor], bool]) -> None:
        for weight in filter(is_stepped, self._downstream()):
            self.rule.project(weight)

    def _downstream(self) -> Iterator[nn.Parameter]:
        """The weights between a block and the output: all affine ones behind the first tap."""
        names = [name for name, _ in self.model.named_modules()]
        inside = [name for name in names if name == self.taps[0] or name.startswith(f"{self.taps[0]}.")]
        for name in names[names.index(inside[-1]) + 1 :]:
            module = self.model.get_submodule(name)
            if is_affine(module):
                yield from (weight for weight in module.parameters(recurse=False) if weight.ndim > 1)

    def _place(self, name: str) -> tuple[nn.Module, int]:
        tap, _, call = name.partition("#")
        return self.model.get_submodule(tap), int(call or 0)

    def _register(self, name: str, state: Mapping[str, torch.Tensor]) -> None:
        module, call = self._place(name)
        for key, tensor in state.items():
            module.register_buffer(_buffer(call, key), tensor, persistent=False)
        self._keys[name] = tuple(state)
        self.rules[name] = self.rule

    def begin(self) -> None:
        """A forward pass of the whole model starts."""
        if not torch.is_grad_enabled():
            self._pass = None
            return
        if forward_ad._current_level >= 0:
            raise AttachmentError(
                "forward-mode differentiation (jvp, jacfwd) does not pass the taps of a direct rule: "
                "call attachment.remove() for it"
            )
        if torch.compiler.is_compiling() and not self._audited:
            raise AttachmentError(
                "the feedback of a direct rule is drawn in the first forward pass: run the model once before compiling"
            )
        self._pass = _Pass()

    def cut(self, tap: str, inputs: tuple[torch.Tensor, ...], output: Any) -> Any:
        """Detach a block's output and remember it until the logits come."""
        if not torch.is_grad_enabled():
            if self._pass is not None:
                raise AttachmentError(
                    f"tapped block {tap!r} ran without grad inside a forward pass that needs it: checkpoint with "
                    "use_reentrant=False, or tap no block under no_grad"
                )
            return output
        tensor, detached = _detach(tap, output)
        if self._pass is None:
            if torch._C._current_graph_task_id() == -1:
                raise AttachmentError(
                    f"tapped block {tap!r} ran outside a call of the model, where no output error can reach it: "
                    "call the model itself, or attachment.remove()"
                )
            return detached  # checkpointing recomputes the block inside the backward pass
        key = self._pass.key(tap)
        if tensor.requires_grad:
            self._pass.taps.append(key)
            self._pass.outputs.append(tensor)
        if not self._audited:
            self._pass.segments.append(Segment(key, tensor, inputs))
        return detached

    def teach(self, logits: Any) -> Any:
        """Tie the blocks that have run to the logits."""
        if self._pass is None:
            return logits
        if not isinstance(logits, torch.Tensor):
            raise SettingError(
                f"output {self.output!r} must return the logits as one tensor; got {type(logits).__name__}: name a "
                "module that does"
            )
        taken, self._pass = self._pass, _Pass(calls=self._pass.calls)
        if not torch._C._are_functorch_transforms_active() and not self._audited:
            self._audit([*taken.segments, Segment(self.output, logits)])
        if not taken.taps:
            return logits
        taps = [self._tap(name, out, logits) for name, out in zip(taken.taps, taken.outputs, strict=True)]
        states = [tensor for name in taken.taps for tensor in self.state(name).values()]
        return inject(logits, taps, taken.outputs, states)

    def end(self) -> None:
        """The forward pass is over: every block that ran must have been tied to logits."""
        taken, self._pass = self._pass, None
        if taken is not None and taken.taps:
            raise AttachmentError(
                f"tapped block {taken.taps[0]!r} ran after the last call of the output {self.output!r}, so no error "
                "can reach it: name the logits module with output=…"
            )

    def _tap(self, name: str, output: torch.Tensor, logits: torch.Tensor) -> Tap:
        positions = self.positions(name, output, logits)
        outputs, features = logits.shape[positions:].numel(), output.shape[positions:].numel()
        if name not in self._keys:
            self._draw(name, outputs, features, output)
        state = self.state(name)
        if tuple(state["D"].shape) != (outputs, features):
            raise AttachmentError(
                f"the feedback of {name!r} has shape {tuple(state['D'].shape)}, but block and logits now need "
                f"{(outputs, features)}: inputs must keep the size of the first forward pass"
            )
        return Tap(self.rule.signal, tuple(state), positions, tuple(output.shape), output.dtype)

    def positions(self, name: str, output: torch.Tensor, logits: torch.Tensor) -> int:
        """How many leading axes are shared: all of (batch, time, …) when they agree, else the batch alone."""
        convolutional = isinstance(self.model.get_submodule(self.output), nn.modules.conv._ConvNd)
        if not convolutional and output.shape[:-1] == logits.shape[:-1]:
            return logits.ndim - 1
        if output.ndim and logits.ndim and output.shape[0] == logits.shape[0]:
            return 1
        raise SettingError(
            f"tap {name!r} returns shape {tuple(output.shape)} and the output {self.output!r} {tuple(logits.shape)}: "
            "their first (batch) axes must agree; tap another module"
        )

    @torch.no_grad()
    def _draw(self, name: str, outputs: int, features: int, output: torch.Tensor) -> None:
        autocast = torch.is_autocast_enabled(output.device.type)
        dtype = torch.promote_types(output.dtype, torch.float32) if autocast else output.dtype
        if dtype.is_complex:
            raise SettingError(f"tap {name!r} returns {dtype}; rules are stated for real numbers: tap another module")
        like = torch.empty(outputs, features, dtype=dtype, device=output.device)
        stream = self.rule.stream(name)
        for other in self._keys:
            if self.rule.stream(other) == stream and self.state(other)["D"].shape == like.shape:
                return self._register(name, self.state(other))  # the same tensors: one copy serves all
        self._register(name, self.rule.init(like, generator_for(self.rule.seed, stream)))

    def _audit(self, segments: list[Segment]) -> None:
        """Read the first graph once: who teaches each parameter, and which errors leak around a tap."""
        found = audit(self.model, segments)
        for name, parameter in self.model.named_parameters():
            self.coverage[name] = self._sentence(parameter, found.lessons[name])
        if found.leaks and self.strict:
            reached = [name for name, lesson in found.lessons.items() if lesson.leaks]
            raise CoverageError(
                f"backpropagated errors leak around tapped {', '.join(found.leaks)} (a residual path, say) to "
                f"{', '.join(reached) or 'parameters before it'}. Tap the module whose output includes that path, or "
                "attach with strict=False"
            )
        self._audited = True

    def _sentence(self, parameter: nn.Parameter, lesson: Lesson) -> str:
        if lesson.leaks:
            return f"NOT COVERED: backpropagated error reaches it around {', '.join(lesson.leaks)}"
        if not parameter.requires_grad:
            return "frozen: requires no gradient"
        if not lesson.teachers:
            return "no leaf of the first forward pass's graph: it took no part, or stands for a shard or copy that did"
        taught = ["the output error" if t == self.output else f"the signal at {t}" for t in lesson.teachers]
        return f"taught by {' and '.join(taught)} ({self.rule!r})"

    def __getstate__(self) -> dict[str, Any]:
        """A copy is made between passes."""
        return {**super().__getstate__(), "_pass": None}


def _buffer(call: int, key: str) -> str:
    return f"{_PREFIX}_{call}_{key}"


def _detach(tap: str, output: Any) -> tuple[torch.Tensor, Any]:
    """The tensor that receives the signal, and the output with nothing of the graph left."""
    if isinstance(output, torch.Tensor):
        return output, output.detach()
    if isinstance(output, tuple | list) and output and isinstance(output[0], torch.Tensor):
        return output[0], _detach_all(output)
    raise SettingError(
        f"tap {tap!r} returns {type(output).__name__}: "
        "tap a module that returns a tensor, or a tuple that starts with one"
    )


def _detach_all(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach()
    return type(value)(map(_detach_all, value)) if isinstance(value, tuple | list) else value


def _forget_compiled() -> None:
    """Code that torch.compile made before does not look for new hooks (dynamo's ``skip_nnmodule_hook_guards``)."""
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()


@dataclass(frozen=True)
class _Open:
    """Before the model's forward pass."""

    attachment: DirectAttachment

    def __call__(self, module: nn.Module, args: Any) -> None:
        self.attachment.begin()


@dataclass(frozen=True)
class _Cut:
    """After a tapped block."""

    attachment: DirectAttachment
    tap: str

    def __call__(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        inputs = tuple(t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor))
        return self.attachment.cut(self.tap, inputs, output)


@dataclass(frozen=True)
class _AtOutput:
    """After the logits module."""

    attachment: DirectAttachment

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        return self.attachment.teach(output)


@dataclass(frozen=True)
class _Close:
    """After the model's forward pass."""

    attachment: DirectAttachment

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        self.attachment.end()
