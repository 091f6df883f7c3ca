"""Which files of a project a Python file's imports name."""

from luthier.projects.project import File, Project

FILES = {
    "src/ns/a.py": "def f():\n    pass\n",
    "pkg/__init__.py": "",
    "pkg/sub/__init__.py": "",
    "pkg/m.py": "class C:\n    pass\n\n\ndef g():\n    pass\n",
    "ns2/deep/k.py": "x = 1\n",
}
TEXT = """from ..m import C
from .. import m as mm
from ns.a import f
from pkg.m import *
import ns2.deep
import os
"""


def test_relative_starred_and_namespace_imports() -> None:
    files = [File(path, text, "python") for path, text in FILES.items()]
    project = Project("p", files, files)
    assert project.imported("pkg/sub/y.py", TEXT, "python") == {
        "C": {"pkg/m.py"},
        "mm": {"pkg/m.py"},
        "f": {"src/ns/a.py"},
        "g": {"pkg/m.py"},
        "ns2": {"ns2/deep/k.py"},
    }
