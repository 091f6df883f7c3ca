"""An ontology: titled concepts under a root, and edges that know which documents speak for them."""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import quote

import networkx as nx
import numpy as np
from numpy.typing import NDArray

from luthier.errors import UserError
from luthier.run_folder import write_json, write_text

Edge = tuple[str, str]
# Source: XML 1.0, production 2; a carriage return is one that readers change.
_NOT_IN_XML = re.compile("[^\t\n\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True, slots=True)
class Relation:
    """What is known of an edge.

    Attributes:
        weight: Number of documents that contain it.
        documents: Their ids.
        log_probability: Mean over its occurrences of the natural logarithm of the probability that the model gave to
            writing the child there; None where no model wrote it.
        attached: Whether pruning put it there, to hang a node that had lost its parents under the root.
    """

    weight: float = 1.0
    documents: tuple[str, ...] = ()
    log_probability: float | None = None
    attached: bool = False


@dataclass(frozen=True, slots=True)
class Ontology:
    """A directed graph with a root.

    Attributes:
        root: Id of the root.
        titles: Title of each node by id; nodes without an edge may be there too.
        edges: Relation of each edge (parent, child).
    """

    root: str
    titles: Mapping[str, str]
    edges: Mapping[Edge, Relation]

    def arrays(self) -> tuple[list[str], NDArray[np.int64]]:
        """Titles of all nodes, and the edges as places in them, shape (num_edges, 2)."""
        places = {node: place for place, node in enumerate(self.titles)}
        edges = [(places[u], places[v]) for u, v in self.edges]
        return list(self.titles.values()), np.array(edges, np.int64).reshape(-1, 2)

    def networkx(self) -> nx.DiGraph:
        """The graph with ``title`` on nodes and what ``Relation`` holds on edges."""
        graph = nx.DiGraph(root=self.root)
        graph.add_nodes_from((node, {"title": title}) for node, title in self.titles.items())
        graph.add_edges_from((u, v, _plain(relation)) for (u, v), relation in self.edges.items())
        return graph

    def with_edges(self, edges: Mapping[Edge, Relation]) -> Ontology:
        """The same root with other edges, and the nodes that they touch."""
        touched = {self.root, *(node for edge in edges for node in edge)}
        return Ontology(self.root, {n: t for n, t in self.titles.items() if n in touched}, dict(edges))


@dataclass(slots=True)
class Document:
    """The paths of one document.

    Attributes:
        id: Its id.
        paths: From the root downwards, as ids of nodes.
        log_probabilities: Of each node of each path; empty where no model wrote them.
    """

    id: str
    paths: Sequence[Sequence[str]]
    log_probabilities: Sequence[Sequence[float]] = field(default_factory=list)


def build(documents: Iterable[Document], root: str, titles: Mapping[str, str] | None = None) -> Ontology:
    """The sum of the documents' paths: an edge weighs as many documents as contain it.

    Args:
        documents: Each with an id of its own.
        root: Id of the root.
        titles: Titles by id, where they differ from the ids.
    """
    supporters: defaultdict[Edge, list[str]] = defaultdict(list)
    logs: defaultdict[Edge, list[float]] = defaultdict(list)
    for document in documents:
        found: dict[Edge, None] = {}
        for number, path in enumerate(document.paths):
            for position, edge in enumerate(pairwise(path), 1):
                found[edge] = None
                if document.log_probabilities:
                    logs[edge].append(document.log_probabilities[number][position])
        for edge in found:
            supporters[edge].append(document.id)
    known = titles or {}
    nodes = dict.fromkeys([root, *(node for edge in supporters for node in edge)])
    return Ontology(
        root,
        {node: known.get(node, node) for node in nodes},
        {
            edge: Relation(
                float(len(ids)),
                tuple(ids),
                sum(logs[edge]) / len(logs[edge]) if logs.get(edge) else None,
            )
            for edge, ids in supporters.items()
        },
    )


def shape(ontology: Ontology) -> dict[str, Any]:
    """Figures that need no truth: nodes, edges, depth, orphans, cycles, most children.

    ``depth`` is the longest of the shortest ways from the root; ``num_orphans`` are nodes without a parent beside the
    root, ``num_cycles`` the strongly connected parts of more than one node and self-loops.
    """
    graph = ontology.networkx()
    ways = nx.single_source_shortest_path_length(graph, ontology.root)
    parts = [part for part in nx.strongly_connected_components(graph) if len(part) > 1]
    levels = Counter(ways.values())
    return {
        "num_nodes": len(ontology.titles),
        "num_edges": len(ontology.edges),
        "depth": max(ways.values()),
        "nodes_by_depth": [levels[depth] for depth in range(max(levels) + 1)],
        "num_unreachable": len(graph) - len(ways),
        "num_orphans": sum(not d and node != ontology.root for node, d in graph.in_degree()),
        "num_cycles": len(parts) + nx.number_of_selfloops(graph),
        "most_children": max((d for _, d in graph.out_degree()), default=0),
    }


def from_node_link(value: Any, where: str) -> Ontology:
    """The ontology of node-link JSON as networkx writes it (``nodes`` and ``links`` or ``edges``), with ``root`` in ``graph``.

    Raises:
        UserError: It is no such JSON.
    """
    fix = "write it with networkx.node_link_data, with graph.graph['root'] set and a title on each node"
    try:
        links = value["links"] if "links" in value else value["edges"]
        titles = {str(node["id"]): str(node.get("title", node["id"])) for node in value["nodes"]}
        edges = {
            (str(link["source"]), str(link["target"])): Relation(float(link.get("weight", 1)))
            for link in links
        }
        root = str(value["graph"]["root"] if "root" in value.get("graph", {}) else value["root"])
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(f"no node-link JSON: {type(error).__name__}: {error}", where, fix) from error
    strange = [node for edge in edges for node in edge if node not in titles]
    if strange or root not in titles:
        raise UserError(f"{(strange or [root])[0]!r} is no node of the graph", where, fix)
    return Ontology(root, titles, edges)


def write(ontology: Ontology, folder: Path) -> None:
    """``ontology.json`` (node-link), ``ontology.graphml``, ``ontology.csv`` and ``ontology.ttl`` (SKOS) in a folder.

    XML has no control characters: in GraphML their pictures stand for them (``␀`` for NUL), and ``�`` for what else it lacks. SKOS needs the package rdflib (``luthier[skos]``); without it that file is left out.
    """
    graph = ontology.networkx()
    write_json(folder / "ontology.json", nx.node_link_data(graph, edges="links"))
    names: dict[str, str] = {}
    taken: set[str] = set()
    for node in sorted(
        graph, key=lambda node: (_for_xml(node) != node, node)
    ):  # those that stay keep their names
        name = _for_xml(node)
        while name in taken:
            name += "'"
        names[node] = name
        taken.add(name)
    flat = nx.DiGraph(root=names[ontology.root])  # GraphML holds text and numbers only
    flat.add_nodes_from(
        (names[node], {"title": _for_xml(title)}) for node, title in graph.nodes(data="title")
    )
    for u, v, data in graph.edges(data=True):
        plain = {key: value for key, value in data.items() if value is not None}
        flat.add_edge(names[u], names[v], **plain | {"documents": json.dumps(plain["documents"])})
    write_text(folder / "ontology.graphml", "\n".join(nx.generate_graphml(flat)) + "\n")
    write_text(folder / "ontology.csv", _csv(ontology))
    if (turtle := skos(ontology)) is not None:
        write_text(folder / "ontology.ttl", turtle)


def _for_xml(text: str) -> str:
    return _NOT_IN_XML.sub(lambda found: chr(0x2400 + ord(found[0])) if found[0] < " " else "\ufffd", text)


def skos(ontology: Ontology) -> str | None:
    """The ontology as SKOS in Turtle: concepts, labels, ``broader`` and ``narrower``; None without rdflib."""
    try:
        from rdflib import Graph, Literal, URIRef
        from rdflib.namespace import RDF, SKOS
    except ImportError:
        return None
    graph = Graph()
    graph.bind("skos", SKOS)
    scheme = URIRef("urn:ontology:scheme")
    names = {node: URIRef("urn:ontology:concept:" + quote(node, safe="")) for node in ontology.titles}
    graph.add((scheme, RDF.type, SKOS.ConceptScheme))
    for node, title in ontology.titles.items():
        graph.add((names[node], RDF.type, SKOS.Concept))
        graph.add((names[node], SKOS.prefLabel, Literal(title)))
        graph.add((names[node], SKOS.inScheme, scheme))
    graph.add((scheme, SKOS.hasTopConcept, names[ontology.root]))
    for u, v in ontology.edges:
        graph.add((names[v], SKOS.broader, names[u]))
        graph.add((names[u], SKOS.narrower, names[v]))
    return str(graph.serialize(format="turtle"))


def _plain(relation: Relation) -> dict[str, Any]:
    return {
        "weight": relation.weight,
        "documents": list(relation.documents),
        "log_probability": relation.log_probability,
        "attached": relation.attached,
    }


def _csv(ontology: Ontology) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["parent", "child", "parent_title", "child_title", "weight", "log_probability", "attached"]
    )
    for (u, v), relation in ontology.edges.items():
        titles = ontology.titles[u], ontology.titles[v]
        writer.writerow([u, v, *titles, relation.weight, relation.log_probability, relation.attached])
    return text.getvalue()
