"""Who a process is, by what srun and torchrun say. How ranks meet and part is in tests/test_job.py."""

from __future__ import annotations

from bielik_nemo.engine.rendezvous import Place, of_slurm, of_torchrun


def test_a_task_of_slurm():
    """Six tasks on two nodes: the fifth is the second of the second node."""
    environment = {"SLURM_NTASKS": "6", "SLURM_NNODES": "2", "SLURM_PROCID": "4"}
    environment |= {"SLURM_LOCALID": "1", "SLURM_NODEID": "1", "RANK": "0"}
    assert of_slurm(environment) == Place(rank=4, world_size=6, local_rank=1, local_world_size=3, node=1)


def test_a_worker_of_torchrun():
    environment = {"RANK": "4", "WORLD_SIZE": "6", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "3", "GROUP_RANK": "1"}
    assert of_torchrun(environment) == Place(rank=4, world_size=6, local_rank=1, local_world_size=3, node=1)
