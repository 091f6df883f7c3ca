"""An ontology with documents hanging on its nodes, as node-link JSON."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from luthier.errors import UserError
from luthier.ontology.graph import from_node_link
from luthier.ontology.linearise import cut_off, simple_paths
from luthier.recipe import UserPath
from luthier.records import Dropped, Record
from luthier.registry import source
from luthier.sources.documents import Documents


@source("graph-file")
class GraphFile(Documents):
    """Node-link JSON as networkx writes it, with ``root`` in ``graph`` and on nodes a ``title`` and ``documents``.

    Documents are objects ``{id, title, abstract}``. The paths of one are all simple paths from the root to it within
    the cut-off, itself left out.
    """

    path: UserPath
    """The file."""
    cutoff: Literal["auto"] | int = Field("auto")
    """Edges from root to document at most; ``auto`` is the smallest number that covers more than 99% of the edges."""

    def documents(self) -> Iterator[Record | Dropped]:
        """The documents in the order of the nodes; one that hangs on several nodes comes once."""
        try:
            value = json.loads(Path(self.path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"the graph cannot be read: {error}", self.path, "name a JSON file") from error
        ontology = from_node_link(value, self.path)
        found: dict[str, Mapping[str, Any]] = {}
        nodes_of: defaultdict[str, list[str]] = defaultdict(list)
        for node in value["nodes"]:
            for document in node.get("documents") or ():
                if not isinstance(document, Mapping) or "id" not in document:
                    raise UserError(
                        f"a document of node {node['id']!r} has no id",
                        self.path,
                        "write documents as {id, title, abstract}",
                    )
                found.setdefault(str(document["id"]), document)
                nodes_of[str(document["id"])].append(str(node["id"]))
        children: defaultdict[str, list[str]] = defaultdict(list)
        for parent, child in ontology.edges:
            children[parent].append(child)
        holders = {node for nodes in nodes_of.values() for node in nodes}
        most = cut_off(children, ontology.root, holders) if self.cutoff == "auto" else self.cutoff
        paths_to: defaultdict[str, list[list[str]]] = defaultdict(list)
        for path in simple_paths(children, ontology.root, most - 1):
            if path[-1] in holders:
                paths_to[path[-1]].append(path)
        for name, document in found.items():
            paths = [path for node in nodes_of[name] for path in paths_to[node] if len(path) > 1]
            if not paths:
                yield Dropped(name, "no-path", f"no way of {most} edges from the root", budgeted=False)
                continue
            titled = [[{"id": n, "title": ontology.titles[n]} for n in path] for path in paths]
            fields = {"title": document.get("title"), "abstract": document.get("abstract"), "paths": titled}
            yield Record(name, fields, name)

    def fingerprint(self) -> str:
        """Hash of the file."""
        try:
            return hashlib.sha256(Path(self.path).read_bytes()).hexdigest()
        except OSError as error:
            raise UserError(f"the graph cannot be read: {error}", self.path, "name a JSON file") from error
