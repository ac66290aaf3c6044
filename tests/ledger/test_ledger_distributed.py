"""Two gloo processes on loopback: the ledger of each equals that of one process on the whole batch."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import lawful
from lawful.ledger.ledger import Ledger

OPTIMISERS = {
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
}


def make(seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2)).double()
    lawful.attach(model, lawful.FeedbackAlignment(seed=3))
    return model


def books(name, model, parallel, part):
    optimizer = OPTIMISERS[name](model.parameters())
    g = torch.Generator().manual_seed(1)
    with Ledger(model, optimizer) as ledger:
        for _ in range(4):
            x, y = (torch.randn(8, n, generator=g, dtype=torch.float64)[part] for n in (4, 2))
            optimizer.zero_grad()
            nn.functional.mse_loss(parallel(x), y).backward()
            optimizer.step()
    return {**ledger.parts, "start": ledger.start, "residual": ledger.residual}


def worker(rank, folder):
    os.environ.update(GLOO_SOCKET_IFNAME="lo")
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    try:
        found = {}
        for name in OPTIMISERS:
            model = make(seed=rank)  # the weights of rank 0 are sent
            parallel = DistributedDataParallel(model)
            found[name] = books(name, model, parallel, slice(4 * rank, 4 * rank + 4))
        torch.save(found, Path(folder) / f"rank{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch has no gloo")
def test_every_rank_keeps_the_books_of_one_process():
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(worker, args=(folder,), nprocs=2)
        ranks = [torch.load(Path(folder) / f"rank{r}.pt") for r in range(2)]
    for name in OPTIMISERS:
        model = make()
        expected = books(name, model, model, slice(None))
        assert float(expected["momentum"].abs().max()) > 1e-4
        for found in ranks:
            assert set(found[name]) == set(expected)
            for cause, part in expected.items():
                torch.testing.assert_close(found[name][cause], part, rtol=1e-9, atol=1e-12)
