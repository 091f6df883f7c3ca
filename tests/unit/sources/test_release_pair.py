"""What a release added, from two that the test makes."""

from pathlib import Path

import pytest
from tests.fixtures.package_index import add_release

from luthier.errors import UserError
from luthier.records import Dropped, Record
from luthier.sources.release_pair import ReleasePair

pytest.importorskip("unearth")
OLD = {
    "pkg/same.py": "same = 1\n",
    "pkg/changed.py": "before = 1\n",
    "pkg/old_name.py": "".join(f"line_number_{i} = {i}\n" for i in range(10)),
}
NEW = {
    "pkg/same.py": OLD["pkg/same.py"],
    "pkg/changed.py": "after = 1\n",
    "pkg/new_name.py": OLD["pkg/old_name.py"] + "one_more = 1\n",
    "pkg/added.py": "first = 1\nsecond = 2\nthird = 3\n",
    "pkg/short.py": "x = 1\n",
}


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    index = tmp_path / "simple"
    monkeypatch.setenv("PIP_INDEX_URL", index.as_uri())
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    old, new = add_release(index, "some-pkg", "1.0", OLD), add_release(index, "some-pkg", "2.0", NEW)
    return {"old": "some-pkg==1.0", "old_sha256": old, "new": "some-pkg==2.0", "new_sha256": new}


def test_new_files_give_rows_with_the_old_release_as_their_project(pair: dict[str, str]) -> None:
    source = ReleasePair(pairs=[pair], min_lines=3, group_by="file")
    items = list(source.records())
    roles = {item.id: item.fields["role"] for item in items if isinstance(item, Record)}
    assert roles == {
        "some-pkg==1.0/pkg/changed.py": "context",
        "some-pkg==1.0/pkg/old_name.py": "context",
        "some-pkg==1.0/pkg/same.py": "context",
        "some-pkg==2.0/pkg/added.py": "added",
        "some-pkg==2.0/pkg/changed.py": "changed",
        "some-pkg==2.0/pkg/short.py": "changed",  # under min_lines
    }
    assert [(item.id, item.reason) for item in items if isinstance(item, Dropped)] == [
        ("some-pkg==2.0/pkg/new_name.py", "moved")
    ]
    assert {item.fields["project"] for item in items if isinstance(item, Record)} == {"some-pkg==1.0 -> 2.0"}
    [added] = [item for item in items if isinstance(item, Record) and item.fields["role"] == "added"]
    assert added.group == added.id and added.fields["lines"] == 4 and added.fields["path"] == "pkg/added.py"
    other = pair | {"new_sha256": "0" * 64}
    assert source.fingerprint() != ReleasePair(pairs=[other]).fingerprint()


def test_pairs_that_share_a_release_share_a_group_and_no_id(tmp_path: Path, pair: dict[str, str]) -> None:
    third = add_release(tmp_path / "simple", "some-pkg", "3.0", NEW | {"pkg/third.py": "newest = 3\n"})
    other = add_release(tmp_path / "simple", "other", "1.0", OLD)
    apart = {"old": "other==1.0", "old_sha256": other, "new": "other==1.0", "new_sha256": other}
    later = {
        "old": pair["new"],
        "old_sha256": pair["new_sha256"],
        "new": "some-pkg==3.0",
        "new_sha256": third,
    }
    for pairs in ([pair, apart, later], [later, apart, pair]):
        items = list(ReleasePair(pairs=pairs).records())
        assert len({item.id for item in items}) == len(items)
        groups = {item.fields["project"]: item.group for item in items if isinstance(item, Record)}
        first = "some-pkg==1.0 -> 2.0" if pairs[0] is pair else "some-pkg==2.0 -> 3.0"
        assert groups == {
            "some-pkg==1.0 -> 2.0": first, "other==1.0 -> 1.0": "other==1.0 -> 1.0", "some-pkg==2.0 -> 3.0": first,
        }  # fmt: skip
    added = {item.id for item in items if isinstance(item, Record) and item.fields["role"] == "added"}
    assert added == {
        "some-pkg==3.0/pkg/third.py",
        "some-pkg==1.0 -> 2.0/some-pkg==2.0/pkg/added.py",
        "some-pkg==1.0 -> 2.0/some-pkg==2.0/pkg/short.py",
    }


def test_releases_of_two_packages_are_no_pair(pair: dict[str, str]) -> None:
    with pytest.raises(UserError, match="not of one package"):
        list(ReleasePair(pairs=[pair | {"new": "other==2.0"}]).records())
