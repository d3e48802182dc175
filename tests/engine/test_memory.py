import torch

from bielik_nemo.engine import memory


def test_the_peak_counts_from_where_it_is_told_to():
    """64 MiB that are touched and freed count before, and not after; the kernel counts pages in batches."""
    size, slack = 64 * 2**20, 4 * 2**20
    memory.start()
    before = memory.peak()
    block = torch.ones(size // 4)
    assert memory.peak() >= before + size - slack
    del block
    memory.start()
    assert memory.fullest() == memory.peak()  # alone
    assert memory.peak() > 2**26  # Python and torch themselves
