"""Measures a paper: its stages in worker processes, each stored as soon as it is done, and a run that resumes.

Every stage draws its randomness from (settings, seed) alone, so neither the number of workers nor an interruption
changes a digit.
"""

from __future__ import annotations

import importlib.metadata
import json
import multiprocessing
import os
import platform
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Protocol

import lawful
from lawful.errors import LawfulError, SettingError
from lawful.experiments.claims import Claim, claims_json
from lawful.experiments.paper import Paper, Stage
from lawful.experiments.records import Section
from lawful.experiments.spec import Spec
from lawful.experiments.store import Store, open_store

CLAIMS_FILE = "claims.json"
ENVIRONMENT_FILE = "environment.json"
DEFAULT_JOBS = 2

_THREAD_LIMITS = {
    name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
}
"""One linear-algebra thread a worker: the workers share the cores, and sums keep one order."""


class StageError(LawfulError):
    """A worker ended without an answer."""


class Watcher(Protocol):
    """Who is told how a run goes, such as a progress bar."""

    def started(self, stage: str) -> None:
        """A worker took up ``stage``."""
        ...

    def progressed(self, stage: str, fraction: float, text: str) -> None:
        """``stage`` has done ``fraction`` of its work."""
        ...

    def finished(self, stage: str, seconds: float, *, resumed: bool) -> None:
        """``stage`` is stored; ``resumed`` when an earlier run had measured it."""
        ...


class SilentWatcher:
    """A watcher that looks away."""

    def started(self, stage: str) -> None:
        """Does nothing."""

    def progressed(self, stage: str, fraction: float, text: str) -> None:
        """Does nothing."""

    def finished(self, stage: str, seconds: float, *, resumed: bool) -> None:
        """Does nothing."""


@dataclass(frozen=True)
class Run:
    """A finished run.

    Args:
        paper: What was measured.
        spec: With which settings and seed.
        root: The folder that holds everything.
        sections: One section a stage, in the order of the paper.
    """

    paper: Paper
    spec: Spec
    root: Path
    sections: Sequence[Section]

    @property
    def claims(self) -> list[Claim]:
        """All claims, in the order of the paper."""
        return [claim for section in self.sections for claim in section.claims]

    @property
    def ok(self) -> bool:
        """Whether no claim failed."""
        return all(claim.ok for claim in self.claims)


def run_paper(paper: Paper, spec: Spec, root: Path, *, jobs: int = DEFAULT_JOBS, watcher: Watcher | None = None) -> Run:
    """Measures every stage of ``paper`` that ``root`` does not hold yet; writes claims and environment.

    Args:
        paper: The paper.
        spec: Its settings and seed, from `lawful.experiments.spec.make_spec`.
        root: The folder of the run.
        jobs: Worker processes.
        watcher: Told how the run goes.

    Raises:
        SettingError: A setting that a stage refuses, or ``jobs`` < 1.
        StorageError: The folder cannot be used.
        DivergenceError: A trajectory left the finite numbers.
    """
    if jobs < 1:
        raise SettingError(f"expected jobs >= 1; got {jobs}")
    watcher = watcher or SilentWatcher()
    with open_store(root, spec) as store:
        missing: dict[str, Stage] = {}
        for name, stage in paper.stages.items():
            seal = store.seal(name)
            if seal is None:
                missing[name] = stage
            else:
                watcher.finished(name, seal["seconds"], resumed=True)
        _measure(missing, spec, store, jobs, watcher)
        run = Run(paper, spec, root, [store.load(name) for name in paper.stages])
        _check_ids(run.claims)
        store.write(CLAIMS_FILE, claims_json(run.claims))
        store.write(ENVIRONMENT_FILE, json.dumps(environment(), indent=2, sort_keys=True) + "\n")
    return run


def environment() -> dict[str, Any]:
    """Versions and platform, for the reader of a report; neither names nor paths of the machine."""
    names = ["lawful", "torch", "numpy", "scipy", "matplotlib", "scikit-learn", "sympy", "python-flint"]
    versions = {name: importlib.metadata.version(name) for name in names}
    return {
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "system": platform.system(),
        "machine": platform.machine(),
        "packages": versions | {"lawful": lawful.__version__},
    }


def _check_ids(claims: Sequence[Claim]) -> None:
    seen: set[str] = set()
    for claim in claims:
        if claim.id in seen:
            raise SettingError(f"claim id {claim.id!r} is used twice; ids name one claim each")
        seen.add(claim.id)


@dataclass
class _Worker:
    stage: str
    process: Any
    messages: Connection


def _measure(stages: dict[str, Stage], spec: Spec, store: Store, jobs: int, watcher: Watcher) -> None:
    """Runs ``stages`` in up to ``jobs`` processes at once; on any failure, and on Ctrl-C, no worker stays behind."""
    if not stages:
        return
    waiting = list(stages)
    workers: dict[Connection, _Worker] = {}
    with _thread_limits():
        context = _process_context({stage.__module__ for stage in stages.values()})
        try:
            while waiting or workers:
                while waiting and len(workers) < jobs:
                    worker = _start(context, waiting.pop(0), stages, spec, store)
                    workers[worker.messages] = worker
                    watcher.started(worker.stage)
                for connection in wait(list(workers)):
                    assert isinstance(connection, Connection)
                    if _receive(workers[connection], watcher):
                        del workers[connection]
        finally:
            for worker in workers.values():
                worker.process.terminate()
            for worker in workers.values():
                worker.process.join()


def _start(context: Any, name: str, stages: dict[str, Stage], spec: Spec, store: Store) -> _Worker:
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(sending, name, stages[name], spec, store.root), daemon=True)
    process.start()
    # Only the worker may hold the sending end: its death then shows as the end of the messages.
    sending.close()
    return _Worker(name, process, receiving)


def _receive(worker: _Worker, watcher: Watcher) -> bool:
    """Handles one message; True when the worker is done."""
    try:
        kind, *content = worker.messages.recv()
    except EOFError:
        worker.process.join()
        code = worker.process.exitcode
        cause = f"killed by signal {-code}; out of memory?" if code < 0 else f"exit code {code}; see its trace above"
        raise StageError(
            f"the worker of stage {worker.stage!r} ended without an answer ({cause});"
            " run the same command again to resume"
        ) from None
    return _HANDLERS[kind](worker, watcher, *content)


def _on_progress(worker: _Worker, watcher: Watcher, fraction: float, text: str) -> bool:
    watcher.progressed(worker.stage, fraction, text)
    return False


def _on_done(worker: _Worker, watcher: Watcher, seconds: float) -> bool:
    worker.process.join()
    watcher.finished(worker.stage, seconds, resumed=False)
    return True


def _on_refused(worker: _Worker, watcher: Watcher, error: LawfulError) -> bool:
    raise error


def _on_broken(worker: _Worker, watcher: Watcher, trace: str) -> bool:
    raise RuntimeError(f"stage {worker.stage!r} failed in its worker:\n{trace}")


_HANDLERS: dict[str, Callable[..., bool]] = {
    "progress": _on_progress,
    "done": _on_done,
    "refused": _on_refused,
    "broken": _on_broken,
}


class _Reporter:
    """The `Progress` of a worker; sends at most ten messages a second."""

    def __init__(self, messages: Connection, scratch: Path) -> None:
        self.scratch: Path | None = scratch
        self._messages = messages
        self._next = 0.0

    def update(self, fraction: float, text: str = "") -> None:
        """Tells the parent; a parent that died makes the worker end with BrokenPipeError."""
        now = time.monotonic()
        if now >= self._next:
            self._next = now + 0.1
            self._messages.send(("progress", min(max(float(fraction), 0.0), 1.0), text))


def _work(messages: Connection, name: str, stage: Stage, spec: Spec, root: Path) -> None:
    """Measures one stage and stores it; runs in a worker process."""
    # Ctrl-C reaches the whole process group; the parent decides and ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    begin = time.perf_counter()
    try:
        section = stage(spec.settings, spec.seed, _Reporter(messages, Store(root).scratch(name)))
        if section.id != name:
            section = replace(section, id=name)
        seconds = time.perf_counter() - begin
        Store(root).save(name, section, seconds=seconds)
        messages.send(("done", seconds))
    except BrokenPipeError:
        sys.exit(1)
    except LawfulError as error:
        messages.send(("refused", error))
    except Exception:
        # A programming error is none of the above: the parent raises it with this trace.
        messages.send(("broken", traceback.format_exc()))
        sys.exit(1)


def _process_context(modules: set[str]) -> Any:
    """Processes that start from a clean server where the system has one: a fork would copy threads and their locks.

    The server imports the stages' ``modules`` once, for all workers.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(sorted(modules))
    # A Ctrl-C that meets a worker before its first line would end it, and be reported as a worker that died. Signals
    # held back stay so in child processes: the server and its workers never see one. (The tracker of resources, which
    # the server needs, lets signals through again when it starts; so it starts first.)
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context


@contextmanager
def _thread_limits() -> Iterator[None]:
    """Thread limits for processes started inside; the libraries read them once, when they are imported."""
    before = {name: os.environ.get(name) for name in _THREAD_LIMITS}
    os.environ.update(_THREAD_LIMITS)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
