"""The grammar of paths: what it lets through is what is read back, and nothing else."""

import random

import pytest

from luthier.ontology.constrain import PathGrammar, TokenChoice
from luthier.ontology.paths import PathFormat

PATHS = PathFormat("Top")
TITLES = ["Computer", "Computer science", "Science -", "Ärzte"]


def accepts(grammar: PathGrammar, text: str) -> bool:
    return grammar.may_end(grammar.walk(grammar.start, text.encode()))


def test_known_nodes_only() -> None:
    grammar = PathGrammar(PATHS, TITLES)
    for text in (
        "Top -> Computer\n",
        "Top -> Computer science -> Computer\nTop -> Ärzte\n",
        "Top -> Science - -> Computer\n",
    ):
        assert accepts(grammar, text)
        assert not PATHS.parse(text, known=TITLES.__contains__).invalid
    for text in (
        "Top -> Comp\n",
        "Top\n",
        "Top -> Computer",
        "Other -> Computer\n",
        "Top -> \n",
        "Top -> Computer scienc\n",
        "\n",
    ):
        assert not accepts(grammar, text)


def test_the_form_only() -> None:
    grammar = PathGrammar(PATHS)
    for text in ("Top -> any thing\n", "Top -> ä -> b\nTop -> c\n"):
        assert accepts(grammar, text)
    for text in ("Top -> a  b\n", "Top -> a \n", "Top ->  a\n", "Top\n", "Top -> a\tb\n", "Top -> a"):
        assert not accepts(grammar, text)
    # Nor any other character that reading takes for white space, wherever it stands; but all others.
    for code in range(0x80, 0x3100):
        for text in (f"Top -> a{chr(code)}b\n", f"Top -> {chr(code)}\n"):
            assert accepts(grammar, text) == (not PATHS.parse(text).invalid), hex(code)


@pytest.mark.parametrize("titles", [None, TITLES])
@pytest.mark.parametrize("separator", [" -> ", "/", "->"])
def test_random_walks_over_tokens_are_valid_paths(titles: list[str] | None, separator: str) -> None:
    paths = PathFormat("Top", separator)
    alphabet = [
        "T",
        "o",
        "p",
        " ->",
        " ",
        "->",
        "-",
        ">",
        "/",
        "\n",
        "Com",
        "puter",
        " science",
        "Science",
        "Ä",
        "rzte",
        "x y",
        " x",
        "Top",
        "t",
    ]
    tokens = [None, *(t.encode() for t in alphabet), *(bytes([b]) for b in range(256))]
    choice = TokenChoice(PathGrammar(paths, titles), tokens, [0])
    draw, num_ended = random.Random(0), 0
    for _ in range(30):
        state, text = choice.grammar.start, b""
        for _ in range(400):
            allowed = choice.allowed(state, at_start=not text)
            token = (
                0
                if 0 in allowed and draw.random() < 0.5
                else draw.choice(
                    [i for i in allowed if i] if titles else [i for i in allowed if 0 < i <= len(alphabet)]
                )
            )
            if token == 0:
                break
            text += tokens[token] or b""
            state = choice.after(state, token)
            assert state
        else:
            continue
        known = titles.__contains__ if titles else None
        parsed = paths.parse(text.decode(), known=known)
        assert not parsed.invalid and parsed.lines
        num_ended += 1
    assert num_ended > 5
    assert choice.after(choice.grammar.start, tokens.index(b"x y")) == frozenset()
