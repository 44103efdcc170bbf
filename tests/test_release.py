"""What a release needs: one version everywhere, a citation, and workflows whose files exist."""

import re
from importlib.metadata import version

import yaml

import esim_fast
from tests.pages import ROOT
from tests.processes import output_of


def test_one_version():
    of_project = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.M)[1]
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.M)[1]
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"]
    assert {of_project, newest, cited, version("esim_fast")} == {esim_fast.__version__}


def test_the_version_does_not_wait_for_torch():
    program = "import sys, esim_fast as e; print(e.__version__, 'torch' in sys.modules, '__version__' in dir(e))"
    assert output_of(program) == f"{version('esim_fast')} False True\n"
