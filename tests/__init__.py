import threading

from tqdm import tqdm

# All processes forked from this one share tqdm's lock, and tests kill processes. One killed while holding the lock
# would block the others forever.
tqdm.set_lock(threading.RLock())
tqdm.monitor_interval = 0  # no thread that might hold the lock during a fork
