"""Names that are looked up, in Luthier and in files of one's own."""

from pathlib import Path

import pytest

from luthier import registry
from luthier.errors import UserError

FILE = """from luthier.registry import metric

@metric("of_the_file")
def of_the_file(outputs, targets):
    return [1.0] * len(outputs)
"""


def test_a_name_of_a_file_is_one_that_the_file_registers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(registry._registered, "metric", dict(registry.registered("metric")))
    path = tmp_path / "mine.py"
    path.write_text(FILE)
    assert registry.lookup("metric", f"{path}@of_the_file", "here")(["a"], ["a"]) == [1.0]
    assert registry.lookup("metric", "of_the_file", "here")(["a"], ["a"]) == [1.0]
    with pytest.raises(UserError, match=f"no metric named 'edit_similarity' in {path}") as raised:
        registry.lookup("metric", f"{path}@edit_similarity", "here")
    assert raised.value.fix == "one of: of_the_file"
    path.write_text(FILE.replace("[1.0]", "[0.5]"))
    assert registry.lookup("metric", f"{path}@of_the_file", "here")(["a"], ["a"]) == [0.5]
