"""``python -m esim_fast`` is the command ``esim-fast``."""

import sys

from .cli import main

sys.exit(main())
