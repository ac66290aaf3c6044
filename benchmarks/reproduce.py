"""How long ``lawful reproduce`` takes, stage by stage: ``python benchmarks/reproduce.py [--quick]``."""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from lawful.experiments.papers import load_paper
from lawful.experiments.run import SilentWatcher, run_paper
from lawful.experiments.spec import make_spec
from lawful.reports.report import write_report

PROMISE = 60.0
"""Seconds on two cores, after set-up."""


class Printer(SilentWatcher):
    """Prints a line a stage."""

    def finished(self, stage: str, seconds: float, *, resumed: bool) -> None:
        """Prints the stage's time in its worker."""
        print(f"  {stage:<12} {seconds:6.1f} s")


def main() -> None:
    begin = time.perf_counter()
    paper = load_paper("robertson2023")
    with tempfile.TemporaryDirectory() as folder:
        run = run_paper(paper, make_spec(paper, quick="--quick" in sys.argv), Path(folder) / "run", watcher=Printer())
        measured = time.perf_counter()
        write_report(run)
    end = time.perf_counter()
    print(f"report {end - measured:.1f} s, everything {end - begin:.1f} s (promised: {PROMISE:.0f} s)")


if __name__ == "__main__":
    main()
