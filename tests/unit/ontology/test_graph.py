import csv
import io
import json
from pathlib import Path

import networkx as nx
import pytest

from luthier.errors import UserError
from luthier.ontology.graph import Document, Relation, build, from_node_link, skos, write
from luthier.ontology.linearise import cut_off, parts, simple_paths

ARXIV = Path(__file__).parents[2] / "fixtures" / "arxiv.txt"


def test_the_arxiv_taxonomy_has_161_nodes_and_166_edges() -> None:
    documents = []
    for line in ARXIV.read_text().splitlines()[1:]:
        path = ["root"]
        for name in line.split():
            path += [name] if name != path[-1] else []
        documents.append(Document(line, [path]))
    ontology = build(documents, "root")
    assert (len(ontology.titles), len(ontology.edges)) == (161, 166)


def test_files_hold_the_whole_graph(tmp_path: Path) -> None:
    ontology = build(
        [Document("d", [["0", "1", "2"]], [[0.0, -0.5, -1.5]])], "0", {"0": "Top", "1": 'A "b", c'}
    )
    write(ontology, tmp_path)
    back = from_node_link(json.loads((tmp_path / "ontology.json").read_text()), "here")
    assert back.titles == ontology.titles and back.root == "0" and set(back.edges) == set(ontology.edges)
    graph = nx.read_graphml(tmp_path / "ontology.graphml")
    assert set(graph.edges) == set(ontology.edges) and graph["1"]["2"]["log_probability"] == -1.5
    rows = list(csv.DictReader((tmp_path / "ontology.csv").read_text().splitlines()))
    assert rows[0]["child_title"] == 'A "b", c' and rows[1]["parent"] == "1" and rows[1]["weight"] == "1.0"
    rdflib = pytest.importorskip("rdflib")
    known = rdflib.Graph().parse(tmp_path / "ontology.ttl")
    broader = list(known.subject_objects(rdflib.namespace.SKOS.broader))
    labels = {str(label) for label in known.objects(None, rdflib.namespace.SKOS.prefLabel)}
    assert len(broader) == 2 and labels == {"Top", 'A "b", c', "2"} and skos(ontology)


def test_control_characters_leave_every_file_readable(tmp_path: Path) -> None:
    names = ["Top\x00", "a\x01", "a\u2401", "b\r\nc\td", "e\x1f<&>\ufffe"]
    ontology = build([Document("d\x02", [names]), Document("e", [names[:2]])], names[0])
    write(ontology, tmp_path)
    graph = nx.read_graphml(tmp_path / "ontology.graphml")
    assert list(map(len, (graph, graph.edges))) == [5, 4]  # two nodes that look alike are two
    assert graph.graph["root"] == "Top␀" and graph["Top␀"]["a␁'"]["weight"] == 2
    assert graph.nodes["a␁'"]["title"] == graph.nodes["a␁"]["title"] == "a␁"
    assert graph.nodes["b␍\nc\td"]["title"] == "b␍\nc\td" and "e␟<&>�" in graph
    assert json.loads(graph["Top␀"]["a␁'"]["documents"]) == ["d\x02", "e"]
    back = from_node_link(json.loads((tmp_path / "ontology.json").read_text()), "here")
    assert set(back.titles) == set(names)
    text = (tmp_path / "ontology.csv").read_bytes().decode()
    rows = list(csv.reader(io.StringIO(text, newline="")))
    assert [row[1] for row in rows[1:]] == names[1:]
    rdflib = pytest.importorskip("rdflib")
    known = rdflib.Graph().parse(tmp_path / "ontology.ttl")
    assert len(set(known.objects(None, rdflib.namespace.SKOS.prefLabel))) == 5


def test_what_is_no_graph_is_refused() -> None:
    link = [{"source": 1, "target": 2}]
    for value, said in (
        ([], "no node-link JSON"), ({"nodes": []}, "no node-link JSON"),
        ({"nodes": [{"id": 1}], "links": [], "graph": {}}, "no node-link JSON"),
        ({"nodes": [{"id": 1}], "links": link, "graph": {"root": 1}}, "'2' is no node"),
    ):  # fmt: skip
        with pytest.raises(UserError) as raised:
            from_node_link(value, "here")
        assert said in raised.value.what
    good = {"nodes": [{"id": 1}, {"id": 2, "title": "b"}], "edges": [{"source": 1, "target": 2, "weight": 3}], "graph": {"root": 1}}  # fmt: skip
    assert from_node_link(good, "here").edges == {("1", "2"): Relation(3.0)}


def test_simple_paths_and_the_cut_off() -> None:
    children = {"r": ["a", "b"], "a": ["b"], "b": ["a", "c"]}
    assert sorted(simple_paths(children, "r", 2)) == [
        ["r"], ["r", "a"], ["r", "a", "b"], ["r", "b"], ["r", "b", "a"], ["r", "b", "c"],
    ]  # fmt: skip
    graph = nx.DiGraph([(u, v) for u, below in children.items() for v in below])
    assert sorted(simple_paths(children, "r", 9)) == sorted(
        [["r"], *nx.all_simple_paths(graph, "r", list("abc"))]
    )
    # r->b->c and the document: 3 edges reach every edge but a->b and b->a when documents hang on c alone ...
    assert cut_off({"r": ["b"], "b": ["c"]}, "r", {"c"}) == 3
    assert cut_off({"r": ["b"], "b": ["c"]}, "r", {"b"}) == 2  # nothing hangs below b
    assert cut_off(children, "r", {"a", "b", "c"}) == 3


def test_parts_of_top_level_nodes() -> None:
    part_of = parts([f"t{i}" for i in range(40)], 0)
    sizes = {split: list(part_of.values()).count(split) for split in ("train", "eval", "test")}
    assert sizes == {"test": 20, "eval": 6, "train": 14}
    assert (
        parts([f"t{i}" for i in reversed(range(40))], 0) == part_of != parts([f"t{i}" for i in range(40)], 1)
    )
