"""Fixtures of the tests of word vectors."""

import pytest

from esim_fast.data import vector_files
from esim_fast.data.parallel import never


@pytest.fixture(params=["in one piece", "in ranges"])
def both_ways(request, monkeypatch):
    """Reads text whole, like small files, or in pieces for several processes, like large files.

    Here the pieces have a line or two, and this process reads them.
    """
    here = lambda function, ranges, workers: (function(each, never) for each in ranges)  # noqa: E731
    monkeypatch.setattr(vector_files, "map_in_processes", here)
    monkeypatch.setattr(vector_files, "processors", lambda: 3 if request.param == "in ranges" else 1)
    monkeypatch.setattr(vector_files, "_RANGE", 8)
