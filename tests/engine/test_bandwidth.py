import pytest
import torch

from bielik_nemo.engine import bandwidth


def test_the_best_pass_counts_and_copies_count_twice(monkeypatch):
    """1,000 numbers are 4,000 bytes: copied in 2 us they are 8,000 bytes, 4 GB/s; summed in 1.25 us 3.2 GB/s."""
    taken = iter([5e-6, 2e-6, 9e-6, 5e-6, 1.25e-6, 4e-6])
    monkeypatch.setattr(bandwidth, "ELEMENTS", 1000)
    monkeypatch.setattr(bandwidth, "REPEATS", 3)
    monkeypatch.setattr(bandwidth, "_seconds", lambda once: (once(), next(taken))[1])
    assert bandwidth.gb_s() == pytest.approx(4.0)


def test_real_memory_is_neither_a_disk_nor_a_cache(monkeypatch):
    monkeypatch.setattr(bandwidth, "ELEMENTS", 2**25)
    assert 0.5 < bandwidth.gb_s() < 20_000


def test_the_device_is_told_with_its_threads():
    if not torch.cuda.is_available():
        assert bandwidth.device_name().endswith(
            f"{torch.get_num_threads()} thread{'s' * (torch.get_num_threads() > 1)}"
        )
