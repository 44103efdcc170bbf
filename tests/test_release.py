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


def test_what_workflows_run_is_there():
    configuration = [ROOT / "pyproject.toml", *(ROOT / ".github/workflows").glob("*.yml")]
    named = re.findall(
        r"\b(?:tests|benchmarks)/[\w/]+\.py|\.ci/run", "".join(path.read_text() for path in configuration)
    )
    assert len(named) > 10
    assert [name for name in named if not (ROOT / name).is_file()] == []


def test_only_a_tag_publishes():
    workflow = yaml.safe_load((ROOT / ".github/workflows/wheels.yml").read_text())
    may_write = [name for name, job in workflow["jobs"].items() if "write" in job.get("permissions", {}).values()]
    assert may_write == ["publish"]
    assert workflow["jobs"]["publish"]["if"] == "startsWith(github.ref, 'refs/tags/v')"
