"""The examples in docstrings and README run, and README's commands are those that CI runs."""

import doctest
import importlib
import pathlib
import pkgutil
import re
import runpy

import pytest

import fastbptt

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
MODULES = [
    module.name
    for module in pkgutil.walk_packages(fastbptt.__path__, "fastbptt.")
    if not module.name.endswith("__main__")
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name):
    failures, _ = doctest.testmod(importlib.import_module(name))
    assert failures == 0


def test_there_are_examples():
    finder = doctest.DocTestFinder()
    count = sum(len(t.examples) for n in MODULES for t in finder.find(importlib.import_module(n)))
    assert count >= 15


def test_the_python_of_the_readme_runs(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for code in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
        (tmp_path / "readme.py").write_text(code)
        runpy.run_path(str(tmp_path / "readme.py"))
    assert "vanishes" in capsys.readouterr().out


def test_ci_runs_the_commands_of_the_readme():
    commands = re.findall(r"```sh\n(.*?)\n```", README, re.DOTALL)
    assert len(commands) == 2
    script = (ROOT / ".ci" / "run").read_text()
    for command in commands:
        last = command.split("&&")[-1].strip()
        assert re.search(rf"step {re.escape(last)}( |$)", script, re.MULTILINE), last


def test_every_public_name_is_documented():
    for name in fastbptt.__all__:
        assert getattr(fastbptt, name).__doc__, name
