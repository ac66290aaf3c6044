"""Two gloo processes on loopback, under DDP and FSDP2: their ledgers equal that of one process on the whole batch."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

import lawful
from lawful.conservation.derive import laws_of
from lawful.ledger.ledger import Ledger

OPTIMISERS = {
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01),
}


def make(seed=0, rule=None):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2)).double()
    lawful.attach(model, rule or lawful.FeedbackAlignment(seed=3))
    return model


def books(name, model, parallel, part, laws):
    optimizer = OPTIMISERS[name](model.parameters())
    g = torch.Generator().manual_seed(1)
    with Ledger(model, optimizer, laws) as ledger:
        for _ in range(4):
            x, y = (torch.randn(8, n, generator=g, dtype=torch.float64)[part] for n in (4, 2))
            optimizer.zero_grad()
            nn.functional.mse_loss(parallel(x), y).backward()
            optimizer.step()
    found = {**ledger.parts, "start": ledger.start, "residual": ledger.residual}
    return {cause: x.full_tensor() if isinstance(x, DTensor) else x for cause, x in found.items()}


def worker(rank, folder):
    os.environ.update(GLOO_SOCKET_IFNAME="lo")
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    try:
        found = {}
        for name in OPTIMISERS:
            model = make(seed=rank)  # the weights of rank 0 are sent
            parallel = DistributedDataParallel(model)
            own = slice(4 * rank, 4 * rank + 4)
            found[name] = books(name, model, parallel, own, laws_of(model).of_kind("neuron", "shift"))
            sharded = make(rule=lawful.Backprop())
            laws = laws_of(sharded).of_kind("neuron", "shift")
            fully_shard(sharded, mesh=init_device_mesh("cpu", (2,)))
            found[f"{name}, sharded"] = books(name, sharded, sharded, own, laws)
        torch.save(found, Path(folder) / f"rank{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch has no gloo")
def test_every_rank_keeps_the_books_of_one_process():
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(worker, args=(folder,), nprocs=2)
        ranks = [torch.load(Path(folder) / f"rank{r}.pt") for r in range(2)]
    for name in OPTIMISERS:
        for how, rule in ((name, None), (f"{name}, sharded", lawful.Backprop())):
            model = make(rule=rule)
            expected = books(name, model, model, slice(None), laws_of(model).of_kind("neuron", "shift"))
            assert float(expected["rule"].abs().max()) <= 1e-12 and float(expected["finite step"].abs().max()) > 1e-4
            for found in [rank[how] for rank in ranks]:
                assert set(found) == set(expected)
                for cause, part in expected.items():
                    torch.testing.assert_close(found[cause], part, rtol=1e-9, atol=1e-12)
