"""Bytes that code allocates, counted by torch's own allocator events."""

from __future__ import annotations

from torch.profiler import ProfilerActivity, profile


def peak(run):
    """The most bytes allocated at once while ``run`` runs, beyond those from before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        run()
    assert record.profiler is not None and record.profiler.kineto_results is not None
    events = [e for e in record.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = top = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        top = max(top, now)
    return top
