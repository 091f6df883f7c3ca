"""Our lexer of Java against the scanner of javac itself."""

import gzip
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from luthier.encoding.lexer import NotCode, tokens

PROGRAM = Path(__file__).parent / "java" / "JavacTokens.java"
OPENED = [
    f"--add-exports=jdk.compiler/com.sun.tools.javac.{part}=ALL-UNNAMED"
    for part in ("parser", "util", "file")
]
CODREP = Path(os.environ.get("LUTHIER_TEST_DATA", "data")) / "repair" / "codrep-java.jsonl.gz"
TEXTS = [
    "long a = 0x1F_FL + 0b10 + 017, b = 1_000; double c = 1e-5f + .5 + 5. + 0x1.8p3 + 1.e3 + 3d, d = f(1..2);",
    "char a = 'a', b = '\\'', c = '\\u0041', d = '\\177', e = '\"'; String s = \"// no \\\" /* no */\" + '\\\\';",
    'String t = """\n   hi "there" \\""" // no\n  ""x\n   """ + ""; // yes """\n',
    "a >>>= 2; List<List<X>> y; Map<A, B<C<D>>> z; a->b; A::new; @Foo int... v; x = y>>>1; x <<= 1; i+++j; a!=-b; a?b:c",
    "/** doc **/ int \u00e9t\u00e9$_1 = 1; /**/ /* * / */ int a/**/b; // end",
    "if (a<b&&c>d||!e) { x ^= ~y; x |= y & z; x %= 3; } else { ; }",
    'text block = """\r\n a\r\n """; int \\u0061b = 1;',
]


@pytest.mark.skipif(shutil.which("java") is None, reason="needs a JDK")
def test_the_same_tokens_as_javac(tmp_path: Path) -> None:
    texts = list(TEXTS)
    if CODREP.is_file():
        with gzip.open(CODREP, "rt", encoding="utf-8") as file:
            rows = [json.loads(line) for number, line in enumerate(file) if number % 20 == 0]
        texts += [row[side] for row in rows for side in ("buggy_function", "fixed_function")]
    (tmp_path / "texts").write_text("\0".join(texts), encoding="utf-8", newline="")
    done = subprocess.run(
        ["java", "-XX:TieredStopAtLevel=1", *OPENED, str(PROGRAM), str(tmp_path / "texts")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert len(lines) == len(texts)
    for text, line in zip(texts, lines, strict=True):
        try:
            ours = [f"{t.start}:{t.end}" for t in tokens(text, "java") if t.kind != "comment"]
        except NotCode as error:
            ours = [str(error)]
        assert ours == line.split(), text
