"""Entry point of ``python -m esim_fast``, the same as the command ``esim-fast``."""

import sys

from .cli import main

sys.exit(main())
