"""What the sources of whole projects share."""

from pathlib import Path

import pytest

from luthier.sources.project_files import licence_of

BSD = "Redistribution and use in source and binary forms, with or without modification, are permitted."


@pytest.mark.parametrize(
    ("text", "licence"),
    [
        (
            "GNU GENERAL PUBLIC LICENSE\nVersion 3, 29 June 2007\n13. Use with the GNU Affero General Public License.\n"
            "use the GNU Lesser General Public License instead",
            "GPL-3.0",
        ),
        (
            "GNU GENERAL PUBLIC LICENSE\n   Version 2, June 1991\nuse the GNU Lesser General Public License",
            "GPL-2.0",
        ),
        (
            "GNU AFFERO GENERAL PUBLIC LICENSE\nVersion 3\nversion 3 of the GNU General Public License",
            "AGPL-3.0",
        ),
        ("GNU LIBRARY GENERAL PUBLIC LICENSE\nthe ordinary GNU General Public License, version 2", "LGPL"),
        ("Mozilla Public License Version 2.0\n===\n1.12. the GNU Affero General Public License", "MPL-2.0"),
        ("Eclipse Public License - v 2.0\nthe GNU General Public License, Version 2.0", "EPL-2.0"),
        (f"{BSD}\n3. Neither the name of the holder", "BSD-3-Clause"),
        (f"{BSD}\n3. Neither the names of the holders", "BSD-3-Clause"),
        (BSD, "BSD-2-Clause"),
        ("Apache License\nVersion 2.0, January 2004", "Apache-2.0"),
        ("All rights reserved.", "unknown"),
    ],
)
def test_a_licence_is_known_by_what_stands_first(tmp_path: Path, text: str, licence: str) -> None:
    (tmp_path / "LICENSE").write_text(text)
    assert licence_of(tmp_path) == licence
