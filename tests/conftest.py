"""Make the shared grid importable from every test folder, interruptions possible, and every test the same each time."""

import signal
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

# A shell starts background jobs deaf to Ctrl-C, and the programs that tests interrupt would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def seeded():
    """What a test draws does not depend on the tests that ran before it in the same process."""
    torch.manual_seed(0)
