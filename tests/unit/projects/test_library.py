"""Library-based generation, with a worked example."""

import pytest

from luthier.errors import UserError
from luthier.metrics import library as metrics
from luthier.projects import library
from luthier.projects.project import File, Project

LIBRARY = {
    "mylib/__init__.py": "",
    "mylib/cluster.py": "class KMeans:\n    def fit(self, x): ...\n    def predict(self, x): ...\n    def _hidden(self): ...\n",
    "mylib/data/__init__.py": "def load_iris(): ...\ndef plot(x): ...\n",
    "mylib/tests/test_cluster.py": "def test_kmeans(): ...\n",
    "setup.py": "def build(): ...\n",
}
EXAMPLE = '''"""
Clusters of flowers
===================

Fit a :class:`~mylib.cluster.KMeans` model on what :func:`load_iris` gives, and plot it. Then
call ``predict`` on it, as KMeans can fit() well.
"""
# Author: somebody
from mylib.cluster import KMeans
from mylib import data as d
import numpy as np

flowers = d.load_iris()  # load

model = KMeans(3)
model.fit(flowers)
"""A note."""
np.random.shuffle(flowers)
d.plot(model.predict(flowers))
'''


def project() -> Project:
    return Project("mylib", [File(path, text, "python") for path, text in LIBRARY.items()])


def test_names_calls_and_instruction_of_a_worked_example() -> None:
    docstring, program = library.split_example(EXAMPLE)
    assert (
        "#" not in program
        and "note" not in program
        and program.startswith("from mylib.cluster import KMeans\n")
    )
    names = library.api_names(project())
    assert names == ["KMeans", "fit", "load_iris", "plot", "predict"]
    assert library.packages(project()) == {"mylib"}
    assert library.called_apis(program, names) == ["KMeans", "fit", "load_iris", "plot", "predict"]
    assert library.resolved_calls(program, {"mylib"}) == [
        "mylib.cluster.KMeans", "mylib.data.load_iris", "mylib.data.plot",
    ]  # fmt: skip
    assert library.masked(docstring, names) == (
        "Clusters of flowers\n===================\n\nFit a `mylib.cluster.[API]` model on what `[API]` gives, and plot it. Then\n"
        "call ``[API]`` on it, as [API] can [API]() well."
    )


def test_names_that_look_like_words_are_masked_where_they_are_names() -> None:
    program = (
        "from mylib.linear import Lasso as L, Ridge\nfrom mylib import pipeline\nimport numpy as np\n"
        "steps = pipeline.Pipeline([L(), Ridge])\nsteps.fit(np.Array(3)).plot()\n"
    )
    names = ["Lasso", "Pipeline", "Ridge", "Scaler", "fit", "plot"]
    # Lasso is called under another name, Ridge only imported, numpy's Array is not the library's.
    answers = library.answers(program, names, {"mylib"})
    assert answers == {"Lasso", "Pipeline", "Ridge", "fit", "plot"}
    docstring = (
        "Lasso and Ridge in a Pipeline\n=============================\n\n"
        "The Lasso's path, the lasso as it is called, and a pipeline with a Scaler, see "
        ":mod:`mylib.pipeline` and :class:`~mylib.linear.Ridge`. Ridge. Fit it, plot the LassoPath; pipeline.fit() does both."
    )
    assert library.masked(docstring, answers) == (
        "[API] and [API] in a [API]\n=============================\n\n"
        "The [API]'s path, the lasso as it is called, and a pipeline with a Scaler, see "
        "`mylib.pipeline` and `mylib.linear.[API]`. [API]. Fit it, plot the LassoPath; pipeline.[API]() does both."
    )


def test_a_module_without_docstring_or_program_is_no_example() -> None:
    assert library.split_example("x = 1\n") is None
    assert library.split_example('"""Only words."""\n') is None
    assert library.split_example("def f(:\n") is None


def test_the_first_words_of_a_script_made_of_a_notebook() -> None:
    script = (
        "#!/usr/bin/env python\n# coding: utf-8\n\n# DO NOT EDIT\n#\n# Made of the notebook:\n# ols.ipynb\n\n\n"
        "# # Least squares\n#\n# Fit a line with `OLS`.\n\n\nimport mylib\n\n\n# ## Plot it\n\nmylib.OLS()\n"
    )
    assert library.split_example(script) == (
        "Least squares\n\nFit a line with `OLS`.",
        "import mylib\n\nmylib.OLS()\n",
    )
    assert library.split_example("# Copyright\n#\n# Nobody\nimport mylib\n# # Late\n") is None


def test_helpful_names_share_words_with_the_instruction() -> None:
    names = library.HelpfulNames(["load_iris", "KMeans", "plot_curve", "make_blobs"])
    assert names.best("Load the iris flowers", 20) == ["load_iris"]
    assert names.best("Plot the means of k blobs", 2)[0] == "KMeans"  # two of its words


def test_api_recall_equals_a_worked_example() -> None:
    from luthier.metrics.library import api_recall, api_recall_resolved, syntax_valid

    meta = {
        "apis": ["KMeans", "fit", "load_iris", "plot"],
        "resolved": ["mylib.cluster.KMeans", "mylib.data.plot"],
        "packages": ["mylib"],
    }
    # It calls fit and plot, but that plot is matplotlib's; KMeans is only imported.
    output = "from mylib.cluster import KMeans\nfrom matplotlib.pyplot import plot\nmodel.fit(x)\nplot(x)\n"
    better = "import mylib.cluster\nmylib.cluster.KMeans().fit(1)\n"
    assert api_recall([output, better], ["", ""], metas=[meta, meta]) == [2 / 4, 2 / 4]
    assert api_recall_resolved([output, better], ["", ""], metas=[meta, meta]) == [0.0, 1 / 2]
    assert syntax_valid([output, "def f(:", ""], [""] * 3) == [1.0, 0.0, 0.0]
    with pytest.raises(UserError, match="do not say which names"):
        api_recall([output], [""], metas=[{}])


def test_chrf_equals_sacrebleu_and_stays_in_bounds() -> None:
    sacrebleu = pytest.importorskip("sacrebleu")
    from luthier.metrics.library import chrf

    outputs, targets = ["x = load_iris()", "", "abc"], ["x = load_digits()", "y = 1", "abc"]
    assert chrf(outputs, targets) == [
        sacrebleu.sentence_chrf(output, [target]).score / 100
        for output, target in zip(outputs, targets, strict=True)
    ]
    assert chrf(outputs, targets)[1:] == [0.0, 1.0]


def test_a_program_runs_if_it_comes_to_its_end() -> None:
    assert metrics.runs(["x = 1", "1 / 0"], ["", ""]) == [1.0, 0.0]


def test_a_body_of_a_docstring_and_a_comment_stays_a_program() -> None:
    text = 'def f():\n    """Says."""\n    # and more\n\n\nf()\n'
    compile(library.without_comments(text), "f", "exec")
