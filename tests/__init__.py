import threading

from tqdm import tqdm

# tqdm's lock is one for all processes that are forked from this one, and who is killed holding it keeps it for ever.
# Tests kill processes.
tqdm.set_lock(threading.RLock())
tqdm.monitor_interval = 0  # no thread that could hold it while another process is forked
