"""Sources of documents with category paths, on small files in the form of the real ones."""

import gzip
import json
from pathlib import Path

import pytest

from luthier.errors import UserError
from luthier.records import Dropped, Record
from luthier.sources.debtags import Debtags
from luthier.sources.graph_file import GraphFile
from luthier.sources.paths import Paths
from luthier.sources.wordnet import WordNet

# Synsets of a made-up WordNet: offset, lexicographer's file, kind, words, pointers, gloss.
DATA = """  1 a line of the licence
00000001 03 n 01 thing 0 002 ~ 00000002 n 0000 ~ 00000003 n 0000 | what there is
00000002 03 n 02 tool 0 implement 1 003 @ 00000001 n 0000 ~ 00000004 n 0000 ~ 00000005 n 0000 | used by hand; "tools"
00000003 03 n 01 toy_car 0 001 @ 00000001 n 0000 | hangs on the root itself
00000004 03 n 01 hammer 0 002 @ 00000002 n 0000 + 00000009 v 0101 | it  drives nails
00000005 03 n 01 blade 0 002 @ 00000002 n 0000 ~ 00000006 n 0000 | it cuts
00000006 03 n 0a knife 0 b 0 c 0 d 0 e 0 f 0 g 0 h 0 i 0 j 0 001 @ 00000005 n 0000 | a blade with a handle
00000007 03 n 01 thing 1 000 | another sense
"""
INDEX = "  1 the licence\nthing n 2 1 ~ 2 0 00000001 00000007\ntool n 1 2 @ ~ 1 0 00000002\n"
PACKAGES = """Package: abc
Source: abc-src (1.2)
Description: a short line
Description-md5: m1
Tag: admin::backup, role::program,
 use::storing

Package: untagged
Description: no tags

Package: bcd
Description: another line
Tag: role::program
"""
VOCABULARY = "Facet: admin\nDescription: System Administration\n More of it\n\nTag: admin::backup\nDescription: Backup\n"
TRANSLATION = "Package: abc\nDescription-md5: m1\nDescription-en: a short line\n It stores\n .\n things.\n"


def records(source) -> list[Record]:
    return [item for item in source.records() if isinstance(item, Record)]


def titles(record: Record) -> list[list[str]]:
    return [[node["title"] for node in path] for path in record.fields["paths"]]


def write_graph(folder: Path) -> Path:
    nodes = [{"id": i, "title": f"T{i}"} for i in range(6)]
    nodes[3]["documents"] = [
        {"id": "d1", "title": "one", "abstract": "x"},
        {"id": "d2", "title": "two", "abstract": "y"},
    ]
    nodes[4]["documents"] = [{"id": "d1", "title": "one", "abstract": "x"}]
    nodes[5]["documents"] = [{"id": "d3", "title": "far", "abstract": "z"}]
    links = [{"source": u, "target": v} for u, v in [(0, 1), (0, 2), (1, 3), (2, 3), (3, 4)]]
    path = folder / "graph.json"
    path.write_text(json.dumps({"graph": {"root": 0}, "nodes": nodes, "links": links}))
    return path


def test_wordnet_gives_leaves_with_their_hypernyms(tmp_path: Path) -> None:
    (tmp_path / "data.noun").write_text(DATA)
    (tmp_path / "index.noun").write_text(INDEX)
    found = list(WordNet(path=str(tmp_path), top="thing").records())
    assert [item.id for item in found] == ["00000003", "00000004", "00000006"]
    assert isinstance(found[0], Dropped) and found[0].reason == "no-path" and not found[0].budgeted
    hammer, knife = found[1:]
    assert hammer.fields["title"] == "hammer" and hammer.fields["abstract"] == "it drives nails"
    assert titles(hammer) == [["thing", "tool"]] and titles(knife) == [["thing", "tool", "blade"]]
    with pytest.raises(UserError, match="2 senses, not 3"):
        records(WordNet(path=str(tmp_path), top="thing", sense=3))
    with pytest.raises(UserError, match="no noun 'hat'"):
        records(WordNet(path=str(tmp_path), top="hat"))
    with pytest.raises(UserError, match="nothing lies two steps below"):
        records(WordNet(path=str(tmp_path), top="thing", sense=2))
    with pytest.raises(UserError, match="cannot be read"):
        records(WordNet(path=str(tmp_path / "none")))


def test_debtags_joins_lists_descriptions_and_names(tmp_path: Path) -> None:
    (tmp_path / "x_Packages.gz").write_bytes(gzip.compress(PACKAGES.encode()))
    (tmp_path / "vocabulary").write_text(VOCABULARY)
    (tmp_path / "Translation-en").write_text(TRANSLATION)
    options = {"packages": str(tmp_path / "*_Packages*"), "vocabulary": str(tmp_path / "vocabulary")}
    (found,) = records(Debtags(**options, translations=str(tmp_path / "Translation-en")))
    assert (found.id, found.group) == ("abc", "abc-src")
    assert found.fields["abstract"] == "a short line\nIt stores\n\nthings."
    assert titles(found) == [
        ["Debian packages", "System Administration", "Backup"],
        ["Debian packages", "use", "use::storing"],
    ]
    (short,) = records(Debtags(**options, root="Debian"))
    assert short.fields["abstract"] == "a short line" and titles(short)[0][0] == "Debian"
    everything = records(Debtags(**options, exclude_facets=[], max_chars=5))
    assert [r.id for r in everything] == ["abc", "bcd"] and everything[0].fields["abstract"] == "a sho"
    first = Debtags(**options).fingerprint()
    (tmp_path / "vocabulary").write_text(VOCABULARY + "\n")
    assert Debtags(**options).fingerprint() != first
    with pytest.raises(UserError, match="there is no such file"):
        records(Debtags(packages=str(tmp_path / "none"), vocabulary=options["vocabulary"]))


def test_a_graph_becomes_the_paths_of_its_documents(tmp_path: Path) -> None:
    path = write_graph(tmp_path)
    found = list(GraphFile(path=str(path)).records())
    assert [item.id for item in found] == ["d1", "d2", "d3"]
    assert isinstance(found[2], Dropped) and found[2].reason == "no-path"
    assert sorted(titles(found[1])) == [["T0", "T1", "T3"], ["T0", "T2", "T3"]]
    assert sorted(map(len, titles(found[0]))) == [3, 3, 4, 4]
    value = json.loads(path.read_text())
    value["nodes"][0]["documents"] = None
    path.write_text(json.dumps(value))
    short = GraphFile(path=str(path), cutoff=3)
    assert sorted(map(len, titles(records(short)[0]))) == [3, 3]
    path.write_text('{"graph": {"root": 0}, "nodes": [{"id": 0, "documents": [{}]}], "links": []}')
    with pytest.raises(UserError, match="has no id"):
        records(GraphFile(path=str(path)))
    with pytest.raises(UserError, match="cannot be read"):
        records(GraphFile(path=str(tmp_path / "none.json")))


def test_parts_split_documents_by_top_level_nodes(tmp_path: Path) -> None:
    rows = [
        {
            "id": f"d{i}",
            "title": "t",
            "abstract": "a",
            "paths": [["Top", f"t{i % 10}", "x"], ["Top", f"t{(i * 3) % 10}"]],
        }
        for i in range(40)
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tops: dict[str, set[str]] = {}
    for part in ("train", "eval", "test"):
        source = Paths(path=str(path), part=part)
        found = list(source.records())
        assert len(found) == 40  # nothing disappears
        assert all(not item.budgeted for item in found if isinstance(item, Dropped))
        tops[part] = {p[1] for item in found if isinstance(item, Record) for p in item.fields["paths"]}
    assert [len(tops[part]) for part in ("test", "eval", "train")] == [5, 2, 3]
    assert len(set.union(*tops.values())) == 10
    assert {
        p[1] for r in records(Paths(path=str(path), part="train", part_seed=1)) for p in r.fields["paths"]
    } != tops["train"]
    assert len(records(Paths(path=str(path)))) == 40
    wrong = [{"id": "w1", "paths": "Top -> x"}, {"id": "w2", "paths": [["Top"]]}]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, *wrong]))
    for part in ("train", "test"):  # no other part's: the task says what is wrong with them
        assert [r.id for r in records(Paths(path=str(path), part=part))][-2:] == ["w1", "w2"]
    titled = [{**row, "paths": [[{"title": n} for n in p] for p in row["paths"]]} for row in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in titled))
    found = records(Paths(path=str(path), part="train"))
    assert {p[1]["title"] for r in found for p in r.fields["paths"]} == tops["train"]
    path.write_text(json.dumps(rows[0]) + "\n")
    with pytest.raises(UserError, match="1 top-level nodes are too few"):
        records(Paths(path=str(path), part="test"))
