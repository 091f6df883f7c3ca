import gzip
from pathlib import Path

import pytest

from luthier.errors import UserError
from luthier.sources.debian_packages import DebianPackages

TEXT = """Package: libfoo-dev
Source: foo (1.2)
Version: 1.2-3
Section: libdevel
Description: files for foo
 More of it,
 .
 and an end.

Package: foo
Version: 1.2-3
Section: utils
Depends: libc6 (>= 2), libfoo
Description: does foo

"""


def test_packages_once_each_with_their_section(tmp_path: Path) -> None:
    (tmp_path / "a_main_binary-amd64_Packages").write_text(TEXT)
    (tmp_path / "b_updates_Packages").write_text(TEXT.replace("utils", "games"))
    first, second = DebianPackages(path=str(tmp_path)).records()
    assert (first.id, first.group, first.fields["section"]) == ("libfoo-dev", "foo", "libdevel")
    assert first.fields["description"] == "files for foo More of it,  and an end."
    assert (second.fields["section"], second.group) == ("utils", "foo")
    assert second.fields["depends"] == "libc6 (>= 2), libfoo"
    before = DebianPackages(path=str(tmp_path)).fingerprint()
    (tmp_path / "b_updates_Packages").write_text("")
    assert DebianPackages(path=str(tmp_path)).fingerprint() != before


def test_compressed_lists(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "a_Packages.gz", "wt") as file:
        file.write(TEXT)
    assert len(list(DebianPackages(path=str(tmp_path)).records())) == 2
    whole = (tmp_path / "a_Packages.gz").read_bytes()
    for damaged in (b"no archive", whole[:-20], whole[:12] + bytes(9) + whole[21:]):
        (tmp_path / "a_Packages.gz").write_bytes(damaged)
        with pytest.raises(UserError, match="cannot be read"):
            list(DebianPackages(path=str(tmp_path)).records())


def test_no_lists(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        list(DebianPackages(path=str(tmp_path)).records())
    (tmp_path / "a_Packages").write_text("")
    with pytest.raises(UserError, match="no package"):
        list(DebianPackages(path=str(tmp_path)).records())
