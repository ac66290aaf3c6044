"""Two processes of DistributedDataParallel equal one process on the whole batch; the page's example runs."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import torch
from torch import distributed, nn

import lawful
from cases import MLP

CASE = MLP((4, 5, 6, 3), "tanh")
Y = torch.tensor([0, 2, 1, 2, 0, 1])


def _work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    for broadcast in (True, False):
        model = CASE.module()
        lawful.attach(model, lawful.DirectFeedbackAlignment(seed=4))
        wrapped = nn.parallel.DistributedDataParallel(model, broadcast_buffers=broadcast)
        for _ in range(2):
            wrapped.zero_grad()
            mine = slice(3 * rank, 3 * rank + 3)
            nn.functional.cross_entropy(wrapped(CASE.batch(6)[mine]), Y[mine]).backward()
        if rank == 0:
            torch.save([p.grad for p in model.parameters()], f"{folder}/gradients-{broadcast}.pt")
    distributed.destroy_process_group()


def test_two_processes_equal_one_with_buffers_broadcast_or_not():
    model = CASE.module()
    lawful.attach(model, lawful.DirectFeedbackAlignment(seed=4))
    nn.functional.cross_entropy(model(CASE.batch(6)), Y).backward()
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_work, (folder,), nprocs=2)
        shared = [torch.load(f"{folder}/gradients-{broadcast}.pt") for broadcast in (True, False)]
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
