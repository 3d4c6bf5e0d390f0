import os

import pytest
import torch

from minmo.rpc import threads


def test_the_budget_reaches_libraries_loaded_before_and_after(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "environ", dict(os.environ))
    before = torch.get_num_threads()
    try:
        threads.limit(3)
        assert torch.get_num_threads() == 3
        assert os.environ["OMP_NUM_THREADS"] == "3"
    finally:
        torch.set_num_threads(before)
