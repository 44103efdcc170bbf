"""How many threads compute, and how they wait for one another."""

import os

from ..processors import bound_processors, usable_processors

SPINS = 1000  # rounds in which a thread of libgomp looks for work before it sleeps; libgomp's default is 300,000


def choose_threads() -> None:
    """Sets environment variables that torch reads when it is imported; the user's settings are kept.

    torch itself starts a thread for each core that this process is bound to. It knows nothing of a container's CPU
    quota, nor that threads which spin while they wait slow everything down on a busy machine.
    """
    if (usable := usable_processors()) < bound_processors() and not {
        "OMP_NUM_THREADS",
        "MKL_NUM_THREADS",
    } & os.environ.keys():
        os.environ["OMP_NUM_THREADS"] = str(usable)
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = str(SPINS)
