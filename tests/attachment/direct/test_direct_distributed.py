"""Two processes, replicated or sharded, equal one process on the whole batch; the page's example runs."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

import lawful
from cases import MLP

CASE = MLP((4, 5, 6, 3), "tanh")
Y = torch.tensor([0, 2, 1, 2, 0, 1])


def _sharded(model: nn.Module) -> nn.Module:
    mesh = init_device_mesh("cpu", (2,))
    for layer in (*model.children(), model):
        fully_shard(layer, mesh=mesh)
    return model


WRAPPERS = {
    "DDP": nn.parallel.DistributedDataParallel,
    "DDP, buffers alone": lambda model: nn.parallel.DistributedDataParallel(model, broadcast_buffers=False),
    "FSDP2": _sharded,
}


def _work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    for name, wrap in WRAPPERS.items():
        model = CASE.module()
        lawful.attach(model, lawful.DirectFeedbackAlignment(seed=4))
        wrapped = wrap(model)
        for _ in range(2):
            wrapped.zero_grad()
            mine = slice(3 * rank, 3 * rank + 3)
            nn.functional.cross_entropy(wrapped(CASE.batch(6)[mine]), Y[mine]).backward()
        gradients = [p.grad.full_tensor() if isinstance(p.grad, DTensor) else p.grad for p in model.parameters()]
        if rank == 0:
            torch.save(gradients, f"{folder}/{name}.pt")
    distributed.destroy_process_group()


def test_two_processes_equal_one():
    model = CASE.module()
    lawful.attach(model, lawful.DirectFeedbackAlignment(seed=4))
    nn.functional.cross_entropy(model(CASE.batch(6)), Y).backward()
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_work, (folder,), nprocs=2)
        shared = [torch.load(f"{folder}/{name}.pt") for name in WRAPPERS]
    for gradients in shared:
        for ours, theirs in zip(model.parameters(), gradients, strict=True):
            assert torch.allclose(ours.grad, theirs, rtol=1e-12, atol=1e-16)


def test_the_example_of_the_page_runs(capsys):
    page = Path(__file__).parents[3] / "docs" / "direct.md"
    (code,) = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    exec(compile(code, str(page), "exec"), {})
    printed = capsys.readouterr().out
    assert "{'1': (10, 128), '3': (10, 128)}" in printed
    assert "2.weight: taught by the signal at 3" in printed
