"""Pinned releases, fetched from an index in a folder."""

import hashlib
import io
import tarfile
from pathlib import Path

import pytest
from pydantic import ValidationError

from luthier.errors import UserError
from luthier.records import Record
from luthier.sources.sdists import Sdists, fetch

pytest.importorskip("unearth")
FILES = {"pkg/a.py": "x = 1\n", "pkg/b.txt": "no code\n", "tests/test_a.py": "assert True\n"}


def released(top: Path, version: str) -> str:
    """The SHA-256 of a release that is added to the index."""
    folder = top / "simple" / "some-pkg"
    archive = folder / f"some_pkg-{version}.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for name, text in FILES.items():
            info = tarfile.TarInfo(f"some_pkg-{version}/{name}")
            info.size = len(text)
            tar.addfile(info, io.BytesIO(text.encode()))
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    with (folder / "index.html").open("a") as page:
        page.write(f'<a href="{archive.name}#sha256={digest}">{archive.name}</a>')
    return digest


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The SHA-256 of the one release of a package index, which is a folder."""
    (tmp_path / "simple" / "some-pkg").mkdir(parents=True)
    digest = released(tmp_path, "1.2")
    monkeypatch.setenv("PIP_INDEX_URL", (tmp_path / "simple").as_uri())
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    return digest


def test_files_of_a_release_are_records_grouped_by_project(index: str, tmp_path: Path) -> None:
    source = Sdists(packages={"some-pkg==1.2": index}, exclude=["**/tests/**"])
    [record] = source.records()
    assert record.id == "some-pkg/some_pkg-1.2/pkg/a.py" and record.group == "some-pkg"
    assert record.fields["text"] == "x = 1\n"
    assert (tmp_path / "simple" / "some-pkg" / "some_pkg-1.2.tar.gz").is_file()
    (tmp_path / "simple" / "some-pkg" / "index.html").unlink()  # from here on it lies in the cache
    assert list(source.records()) == [record]
    other = Sdists(packages={"some-pkg==1.3": index})
    assert source.fingerprint() != other.fingerprint()


def test_another_file_than_the_pinned_one_is_refused(index: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"has the SHA-256 {index}, not {'0' * 64}"):
        fetch("some-pkg==1.2", "0" * 64)
    assert not list((tmp_path / "cache" / "sdists").glob("*"))


def test_a_release_that_is_not_there_is_named(index: str) -> None:
    with pytest.raises(UserError, match="the index has no source distribution"):
        fetch("some-pkg==9", index)


@pytest.mark.parametrize("packages", [{"some-pkg": "0" * 64}, {"some-pkg==1": "abc"}, {}])
def test_packages_are_pinned(packages: dict[str, str]) -> None:
    with pytest.raises(ValidationError):
        Sdists(packages=packages)


def test_two_releases_of_a_package_are_two_projects_in_one_group(index: str, tmp_path: Path) -> None:
    packages = {"some-pkg==1.2": index, "Some_Pkg==1.3": released(tmp_path, "1.3")}
    found = list(Sdists(packages=packages, tests="drop").records())
    records = [item for item in found if isinstance(item, Record)]
    assert [record.fields["project"] for record in records] == ["some-pkg==1.2", "Some_Pkg==1.3"]
    assert {record.group for record in records} == {"some-pkg"}
