"""Set how many threads compute, and how they wait for each other."""

import os

from ..processors import bound_processors, usable_processors

SPINS = 1000  # times that a waiting thread of libgomp polls before it sleeps; its default is 300,000


def choose_threads() -> None:
    """Set environment variables that torch reads on import; variables that the user has set are kept.

    By default, torch starts a thread for each core in this process's affinity mask. It ignores a container's CPU quota,
    and threads that spin while they wait slow down a busy machine.
    """
    if (usable := usable_processors()) < bound_processors() and not {
        "OMP_NUM_THREADS",
        "MKL_NUM_THREADS",
    } & os.environ.keys():
        os.environ["OMP_NUM_THREADS"] = str(usable)
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = str(SPINS)
