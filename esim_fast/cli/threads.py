"""How many threads compute, and how they wait for one another."""

import os

from ..processors import usable_processors

SPINS = 1000  # rounds in which a thread of libgomp looks for work before it sleeps; its own default are 300,000


def choose_threads() -> None:
    """Says it in the environment, which torch and its libraries read when they are imported; what the user has set
    stays.

    torch itself starts a thread for each core that this process is bound to. Of a container's share of their time it
    does not know, nor that a thread that waits without sleeping holds up others, where they are not alone.
    """
    usable = usable_processors()
    if usable < (os.cpu_count() or 1) and not {"OMP_NUM_THREADS", "MKL_NUM_THREADS"} & os.environ.keys():
        os.environ["OMP_NUM_THREADS"] = str(usable)
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = str(SPINS)
