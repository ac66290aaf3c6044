"""Two gloo processes on loopback against one process on the whole batch."""

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

RULES = {
    "FA": lambda: lawful.FeedbackAlignment(seed=3),
    "KP": lambda: lawful.KolenPollack(seed=3),
    "KP, decay": lambda: lawful.KolenPollack(seed=3, decay=0.05),
    "uSF": lawful.UniformSignSymmetry,
    "brSF": lambda: lawful.BatchwiseMagnitudeSignSymmetry(seed=3),
    "WM": lambda: lawful.WeightMirror(seed=3),
}


def make(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    layers = [nn.Conv1d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 2)]
    return nn.Sequential(*layers).double()


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    return (torch.randn(n, 8, *s, generator=g, dtype=torch.float64) for n, s in ((3, (2, 6)), (3, (2,))))


def train(model: nn.Module, attachment, xs, ys) -> dict[str, torch.Tensor]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    attachment.follow(optimizer)
    for x, y in zip(xs, ys, strict=True):
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()
    return {n.removeprefix("module."): p.detach().clone() for n, p in model.named_parameters()}


def one_process(rule: str) -> dict[str, torch.Tensor]:
    model = make()
    attachment = lawful.attach(model, RULES[rule]())
    trained = train(model, attachment, *batch())
    return trained | {f"B of {n}": attachment.feedback_of(n) for n in attachment.rules}


def worker(rank: int, folder: str) -> None:
    os.environ.update(GLOO_SOCKET_IFNAME="lo")
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    try:
        results = {}
        for rule in RULES:
            for broadcast in (True, False):
                # Processes start from different weights: DDP sends those of rank 0.
                model = make(seed=rank if broadcast else 0)
                attachment = lawful.attach(model, RULES[rule]())
                parallel = DistributedDataParallel(model, broadcast_buffers=broadcast)
                xs, ys = (t[:, 4 * rank : 4 * rank + 4] for t in batch())
                results[rule, broadcast] = train(parallel, attachment, xs, ys)
                ignored = parallel.parameters_to_ignore
                fixed = {n for n, _ in model.named_buffers() if n in ignored}
                every = len(list(model.named_buffers()))
                assert len(fixed) == (0 if "KP" in rule else every), "what every process draws alike is not sent"
        torch.save(results, Path(folder) / f"rank{rank}.pt")
    finally:
        dist.destroy_process_group()


def run(target) -> list[dict]:
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(target, args=(folder,), nprocs=2)
        return [torch.load(Path(folder) / f"rank{r}.pt") for r in range(2)]


@pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch has no gloo")
def test_data_parallel_training_equals_one_process():
    ranks = run(worker)
    for rule in RULES:
        expected = one_process(rule)
        for broadcast in (True, False):
            for results in ranks:
                for name, value in results[rule, broadcast].items():
                    torch.testing.assert_close(value, expected[name], rtol=1e-12, atol=1e-12)


def sharded_worker(rank: int, folder: str) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    os.environ.update(GLOO_SOCKET_IFNAME="lo")
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    try:
        mesh = init_device_mesh("cpu", (2,))
        results = {}
        for rule in RULES:
            model = make()
            attachment = lawful.attach(model, RULES[rule]())
            for layer in (model[0], model[3], model[5]):
                fully_shard(layer, mesh=mesh)
            fully_shard(model, mesh=mesh)
            xs, ys = (t[:, 4 * rank : 4 * rank + 4] for t in batch())
            trained = train(model, attachment, xs, ys)
            results[rule] = {n: p.full_tensor() for n, p in trained.items()}
            results[rule] |= {f"B of {n}": attachment.feedback_of(n) for n in attachment.rules}
            with pytest.raises(lawful.LawfulError, match="fully_shard"):
                attachment.remove()
        torch.save(results, Path(folder) / f"rank{rank}.pt")
        late = make()
        fully_shard(late, mesh=mesh)
        with pytest.raises(lawful.LawfulError, match="fully_shard"):
            lawful.attach(late, RULES["FA"]())
    finally:
        dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch has no gloo")
def test_fully_sharded_training_equals_one_process():
    ranks = run(sharded_worker)
    for rule in RULES:
        expected = one_process(rule)
        for results in ranks:
            for name, value in results[rule].items():
                torch.testing.assert_close(value, expected[name], rtol=1e-12, atol=1e-12)
