"""Local inference in Triton: one_tile.py and many_tiles.py hold the kernels, launch.py decides how they run, and
arguments.py refuses what they cannot be given."""
