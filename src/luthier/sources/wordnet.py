"""A subtree of WordNet: words with glosses, and the hypernyms above them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from luthier.errors import UserError
from luthier.ontology.linearise import simple_paths
from luthier.recipe import UserPath
from luthier.records import Dropped, Record
from luthier.registry import source
from luthier.sources.documents import Documents

_HYPONYM = "~"


@dataclass(frozen=True, slots=True)
class _Synset:
    """A sense: its first word, what it means, and the senses below it."""

    title: str
    gloss: str
    hyponyms: tuple[str, ...]


@source("wordnet")
class WordNet(Documents):
    """Nouns below a word of WordNet: each that has nothing below it is a document, all others are concepts.

    Title and abstract of a document are word and gloss; its paths are the chains of hypernyms. Ids are synset offsets,
    for different senses may have one title.

    Source: Princeton WordNet 3.0 (the Debian package wordnet-base has the files).
    """

    path: UserPath = "/usr/share/wordnet"
    """Folder with ``index.noun`` and ``data.noun``."""
    top: str = "artifact"
    """Word that is the root."""
    sense: int = Field(1, ge=1)
    """Which sense of that word; the commonest is 1."""
    most_edges: int = Field(20, ge=1)
    """Longer chains of hypernyms are left out."""

    def documents(self) -> Iterator[Record | Dropped]:
        """The leaves below the word, by offset."""
        synsets = self._synsets()
        root = self._offset_of_top()
        children = {offset: synset.hyponyms for offset, synset in synsets.items()}
        paths: dict[str, list[list[str]]] = {}
        for path in simple_paths(children, root, self.most_edges):
            if len(path) > 1 and not children[path[-1]]:
                paths.setdefault(path[-1], []).append(path[:-1])
        if not any(len(path) > 1 for found in paths.values() for path in found):
            raise UserError(
                f"nothing lies two steps below {self.top!r}", self.path, "name a more general word as top"
            )
        for offset in sorted(paths):
            if all(len(path) == 1 for path in paths[offset]):
                yield Dropped(offset, "no-path", "it hangs on the root itself", budgeted=False)
                continue
            titled = [[{"id": n, "title": synsets[n].title} for n in path] for path in paths[offset]]
            synset = synsets[offset]
            fields = {"title": synset.title, "abstract": synset.gloss, "paths": titled}
            yield Record(offset, fields, offset)

    def fingerprint(self) -> str:
        """Hash of both files."""
        total = hashlib.sha256()
        for name in ("index.noun", "data.noun"):
            total.update(self._text(name).encode())
        return total.hexdigest()

    def _offset_of_top(self) -> str:
        word = self.top.lower().replace(" ", "_")
        for line in self._text("index.noun").splitlines():
            if line.startswith(word + " "):
                parts = line.split()
                offsets = parts[-int(parts[2]) :]  # the last words of the line, the commonest sense first
                if self.sense > len(offsets):
                    raise UserError(
                        f"{self.top!r} has {len(offsets)} senses, not {self.sense}",
                        self.path,
                        "choose another sense",
                    )
                return offsets[self.sense - 1]
        raise UserError(f"WordNet has no noun {self.top!r}", self.path, "name a noun in the singular as top")

    def _synsets(self) -> dict[str, _Synset]:
        synsets = {}
        for line in self._text("data.noun").splitlines():
            if line.startswith("  "):  # the licence
                continue
            facts, _, gloss = line.partition(" | ")
            words = facts.split()
            num_words = int(words[3], 16)
            pointers = words[4 + 2 * num_words :]
            hyponyms = [pointers[i + 1] for i in range(1, len(pointers) - 1, 4) if pointers[i] == _HYPONYM]
            title = words[4].replace("_", " ")
            synsets[words[0]] = _Synset(title, " ".join(gloss.split()), tuple(hyponyms))
        return synsets

    def _text(self, name: str) -> str:
        try:
            return (Path(self.path) / name).read_text(encoding="latin-1")
        except OSError as error:
            raise UserError(
                f"{name} cannot be read: {error.strerror or error}",
                self.path,
                "apt-get install wordnet-base, or set path to a folder that holds WordNet 3.0's dict files",
            ) from error
