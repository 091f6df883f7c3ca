from pathlib import Path

import pytest

from luthier.errors import UserError
from luthier.sources.code_modules import CodeModules, masked

TEXT = '''"""A module."""
import os


@cached
def parse_json(text):
    """Reads JSONL, with json.decoder."""
    decoder = JSONDecoder()
    return decoder.raw(text)


class Thing:
    def one(self):
        a = 1
        b = """
left"""
        return a

    def short(self): pass

    async def two(self):
        def inner():
            return 1

        return inner
'''


def test_functions_and_methods_with_what_names_the_module_masked() -> None:
    records = list(CodeModules()._of_file("json/decoder.py", TEXT))
    assert [r.fields["name"] for r in records] == ["parse_json", "one", "two"]
    assert {r.fields["label"] for r in records} == {"json.decoder"}
    assert [r.group for r in records] == [
        "json/decoder.py:parse_json", "json/decoder.py:Thing", "json/decoder.py:Thing",
    ]  # fmt: skip
    first, one, _ = (r.fields["text"] for r in records)
    assert first.startswith("@cached\ndef parse_MASKED(text):")
    assert not any(word in (first + one).lower() for word in ("json", "decoder"))
    assert one == 'def one(self):\n    a = 1\n    b = """\nleft"""\n    return a'
    assert records[0].id == "json/decoder.py:5"


def test_a_form_feed_ends_no_line() -> None:
    plain, fed = (
        next(CodeModules()._of_file("a/b.py", text)) for text in (TEXT, TEXT.replace("\n\n\n@", "\n\f\n\n@"))
    )
    assert fed == plain


def test_masking_leaves_short_parts_and_underscores_alone() -> None:
    assert masked("os.path and re_sub", ["os", "re"]) == "os.path and re_sub"
    assert masked("ConfigParser config_parser", ["configparser"]) == "MASKED config_parser"
    assert masked("base_events BaseEvents", ["base_events"]) == "MASKED MASKED"
    assert masked("_pyio PyIO", ["_pyio"]) == "_MASKED MASKED"


def test_label_keeps_so_many_parts() -> None:
    for depth, label in ((1, "a"), (2, "a.b"), (5, "a.b.c")):
        assert next(CodeModules(depth=depth)._of_file("a/b/c/__init__.py", TEXT)).fields["label"] == label
    assert list(CodeModules()._of_file("a.py", "def broken(:\n")) == []


def test_modules_are_chosen_and_bounded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from luthier.sources import code_modules
    from luthier.sources.code import Code

    for name, count in (("large", 9), ("middle", 6), ("small", 4), ("tiny", 1)):
        text = "\n".join(f"def f{i}(x):\n    a = {i}\n    b = a\n    return b\n" for i in range(count))
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.setattr(code_modules, "Stdlib", lambda **_: Code(path=str(tmp_path)))
    records = list(CodeModules(min_functions=4, max_modules=2, max_functions=7).records())
    labels = [r.fields["label"] for r in records]
    assert (labels.count("large"), labels.count("middle"), len(labels)) == (7, 6, 13)
    assert records == list(CodeModules(min_functions=4, max_modules=2, max_functions=7).records())
    before = CodeModules().fingerprint()
    (tmp_path / "tiny.py").write_text("")
    assert CodeModules().fingerprint() != before
    with pytest.raises(UserError, match="1 modules have 9 functions"):
        list(CodeModules(min_functions=9).records())


@pytest.mark.parametrize("name", ["json", "no_such_package", "sys", "jinja2.filters"])
def test_packages_that_are_not_there(name: str) -> None:
    with pytest.raises(UserError, match="no package"):
        list(CodeModules(packages=[name])._trees())


def test_an_installed_package() -> None:
    (_, _), (prefix, code) = CodeModules(packages=["jinja2"])._trees()
    assert prefix == "jinja2."
    assert any(r.id == "filters.py" for r in code.records())
    _, (prefix, code) = CodeModules(packages=["hypothesis.internal"])._trees()
    found = {r.id for r in code.records()}
    assert prefix == "hypothesis.internal." and "reflection.py" in found and "core.py" not in found
