"""How the ranks of a job meet: rank 0 tells the others through a store whether there is work, and at which port.

Slurm's variables or torchrun's say who is who. The process groups of a stage meet at another port than this store's: a
store of torchrun's keeps the addresses of the first group, with which a second one hangs.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

from torch.distributed import DistError, TCPStore

LONGEST = timedelta(days=1)
"""That the others wait for rank 0, which may have to read all weights before it knows whether there is work."""
_WORK, _END = "bielik-nemo/work", "bielik-nemo/end"


@dataclass(frozen=True)
class Place:
    """Who this process is among those of its job."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    node: int


def of_slurm(environment: Mapping[str, str] = os.environ) -> Place:
    """What srun says of a task."""
    size, nodes = int(environment["SLURM_NTASKS"]), int(environment["SLURM_NNODES"])
    return Place(
        rank=int(environment["SLURM_PROCID"]),
        world_size=size,
        local_rank=int(environment["SLURM_LOCALID"]),
        local_world_size=size // nodes,
        node=int(environment["SLURM_NODEID"]),
    )


def of_torchrun(environment: Mapping[str, str] = os.environ) -> Place:
    """What torchrun says of a worker."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK")
    return Place(*(int(environment[name]) for name in names))


class Rendezvous:
    """The store of a job's ranks."""

    def __init__(self, place: Place):
        """Join, as the host where nobody else is.

        Args:
            place: of this process. MASTER_ADDR and MASTER_PORT say where to meet.
        """
        self.place = place
        hosts = place.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        self._store = TCPStore(host, port, place.world_size, is_master=hosts, timeout=LONGEST)

    def begin(self) -> None:
        """Rank 0: there is work; all meet at a free port of this machine."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            port = probe.getsockname()[1]
        self._store.set(_WORK, str(port))
        self._meet_at(port)

    def begun(self) -> bool:
        """Any other rank: wait for rank 0, and whether there is work."""
        port = int(self._store.get(_WORK))
        if port:
            self._meet_at(port)
        return bool(port)

    def part(self) -> None:
        """Let rank 0 end first: srun gives the others a minute when one has ended, and rank 0 has digests to make."""
        if self.place.rank:
            self._store.get(_END)
            self._store.set(f"{_END}/{self.place.rank}", "")
            return
        if not self._store.check([_WORK]):
            self._store.set(_WORK, "0")
        self._store.set(_END, "")
        with contextlib.suppress(DistError):  # it only spares them a complaint that the store is gone
            self._store.wait([f"{_END}/{rank}" for rank in range(1, self.place.world_size)], timedelta(seconds=10))

    def _meet_at(self, port: int) -> None:
        """Set what torchrun would, so that Lightning asks no other launcher."""
        place = self.place
        os.environ |= {
            "RANK": str(place.rank),
            "WORLD_SIZE": str(place.world_size),
            "LOCAL_RANK": str(place.local_rank),
            "LOCAL_WORLD_SIZE": str(place.local_world_size),
            "GROUP_RANK": str(place.node),
            "MASTER_PORT": str(port),
            "TORCHELASTIC_RUN_ID": "bielik-nemo",
            "TORCHELASTIC_USE_AGENT_STORE": "False",
        }
