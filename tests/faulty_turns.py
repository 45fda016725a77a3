"""The program of a rank in which some layers go wrong after a few steps; their capacity factor says how."""

import os
import signal
import sys
import time

from moesim.validate.layers import building
from moesim.validate.run import turns

STEPS = 12
"""Steps after which a layer goes wrong: in the middle of its rounds."""
KILLED, HUNG, NO_MEMORY, LOST = 3.0, 4.0, 5.0, 6.0
build = building.build


class Faulty:
    """A layer that goes wrong."""

    def __init__(self, layer, how: float, rank: int) -> None:
        self.layer, self.how, self.rank, self.steps = layer, how, rank, 0

    def step(self, *args, **named):
        self.steps += 1
        if self.steps > STEPS and self.rank == 1:
            if self.how == KILLED:
                os.kill(os.getpid(), signal.SIGKILL)
            if self.how == HUNG:
                time.sleep(1000)
            if self.how == NO_MEMORY:
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
            if self.how == LOST:
                raise RuntimeError("CUDA error: device is lost")
        return self.layer.step(*args, **named)


def faulty(spec, group, rank, *args, **named):
    layer = build(spec, group, rank, *args, **named)
    return Faulty(layer, spec.factor, rank) if spec.factor >= KILLED else layer


if __name__ == "__main__":
    building.build = faulty
    sys.exit(turns.main(sys.argv[1:]))
