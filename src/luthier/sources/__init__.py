"""What a source is: it gives raw records, one at a time. One file in this folder a source.

A source is a pydantic class whose fields are its options in the recipe (``data: {source: {type: NAME, option: value}}``)::

    @source("poems")
    class Poems(Source):
        \"""A poem a line.\"""

        path: str
        \"""Text file.\"""

        def records(self):
            for number, line in enumerate(Path(self.path).read_text().splitlines(), 1):
                yield Record(f"{self.path}:{number}", {"text": line}, group=f"{self.path}:{number}")

        def fingerprint(self):
            return hashlib.sha256(Path(self.path).read_bytes()).hexdigest()

"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator

from luthier.recipe import Options
from luthier.records import Dropped, Record


class Source(Options):
    """Base of all sources."""

    @abstractmethod
    def records(self) -> Iterator[Record | Dropped]:
        """The raw records, and each one that cannot be used with the reason: a stream, in the same order each time.

        Raises:
            UserError: Nothing can be read, or nothing that is read can be used.
        """

    @abstractmethod
    def fingerprint(self) -> str:
        """Hash of all that the records depend on beside the options: the contents of the files."""
