"""Hypernyms by Hearst patterns: phrases in a text that say of one noun phrase that it is a kind of another.

Sources: Hearst 1992, "Automatic Acquisition of Hyponyms from Large Text Corpora"; Roller, Kiela and Nickel 2018, "Hearst
Patterns Revisited", table 1; Seitner et al. 2016, "A Large DataBase of Hypernymy Relations Extracted from the Web".
"""

from __future__ import annotations

import re
from collections.abc import Iterator

# In a pattern, G is the general noun phrase, S the specific one, or several: "S1, S2 and S3".
_PATTERNS = (
    "G ,? such as S",
    "such G as S",
    "S ,? (and|or) other G",
    "S ,? (and|or) (any|some|certain|many) other G",
    "G ,? including S",
    "G ,? (especially|particularly|notably|mainly|mostly|principally) S",
    "G ,? in particular S",
    "G ,? like S",
    "G ,? e g ,? S",
    "G ,? for (example|instance) ,? S",
    "G ,? i e ,? S",
    "G ,? namely S",
    "G ,? among them S",
    "G other than S",
    "G ,? except S",
    "unlike (most|all|any|other) G , S",
    "like (most|all|any|other) G , S",
    "S ,? which (is|are) (example|examples|class|classes|kind|kinds|type|types|sort|sorts|form|forms) of G",
    "S (is|are|was|were) (example|examples|class|classes|kind|kinds|type|types|sort|sorts|form|forms) of G",
    "(example|examples) of G (is|are|include|includes) S",
    "(kind|kinds|type|types|sort|sorts|form|forms) of G (is|are|include|includes) S",
    "S ,? (is |one )?special case of G",
    "S ,? which (is|are) called G",
    "S (is|are) called G",
    "S (is|was) G that",
    "S ,? one of ((these|those) )?G",
    "S (is|are) (most|least|largest|smallest|best|worst|oldest|newest) G",
    "G (is|are) (divided|classified|grouped) into S",
)

# Words that no noun phrase holds: closed classes, common verbs, and the words of the patterns themselves.
_BREAKS = frozenset(
    """
    a an the this that these those such other another any some all most many much more few several each
    every both no certain various different and or nor but so yet if than then as at by for from in into
    of off on onto out over per to under up upon via with within without about above after against along
    among around before behind below between beyond during except like near since through throughout
    toward towards until unlike i you he she it we they me him her us them my your his its our their who
    whom whose which what where when why how is are was were be been being am do does did have has had
    can could may might must shall should will would not also very only just even still often usually
    generally commonly sometimes always never here there thus hence however therefore because while
    although though include includes included including especially particularly notably mainly mostly
    principally particular namely example examples instance class classes kind kinds type types sort
    sorts form forms special case called one use uses used using make makes made provide provides
    provided contain contains contained consist consists allow allows based known named found given
    taken divided classified grouped support supports largest smallest best worst oldest newest least e
    g etc versus vs
    """.split()  # noqa: SIM905 # a list of them has a line a word
)
_WORD = re.compile(r"[^\W_]+(?:[-'][^\W_]+)*|[,.;:()?!]")
_SENTENCE_END = frozenset(".;:?!()")
_ARTICLES = frozenset({"a", "an", "the"})  # left out, for they stand before any phrase
_MOST_WORDS = 4


def _compiled(pattern: str) -> re.Pattern[str]:
    phrase = r"NP\d+"
    several = rf"{phrase}(?: , {phrase})*(?: ,? ?(?:and|or) {phrase})?"
    parts = [re.escape(p) if p == "," else p for p in re.split(r"(\bG\b|\bS\b)", pattern)]
    text = "".join(
        f"(?P<general>{phrase})" if p == "G" else f"(?P<specific>{several})" if p == "S" else p for p in parts
    )
    # "G ,? such" must match "NP1 such" as well as "NP1 , such".
    return re.compile(r"\b" + text.replace(" ,? ", "(?: ,)? ") + r"\b")


_COMPILED = [_compiled(pattern) for pattern in _PATTERNS]


def hypernyms(text: str) -> Iterator[tuple[str, str]]:
    """Pairs (general, specific) of noun phrases, in small letters, in the order of sentences and patterns.

    Noun phrases are found without a tagger: runs of at most four words, from their end, that are in no closed class.
    """
    for words in _sentences(text):
        phrases: list[str] = []
        marked = _marked(words, phrases)
        for pattern in _COMPILED:
            for found in pattern.finditer(marked):
                general = phrases[int(found["general"][2:])]
                for specific in re.findall(r"NP(\d+)", found["specific"]):
                    if phrases[int(specific)] != general:
                        yield general, phrases[int(specific)]


def _sentences(text: str) -> Iterator[list[str]]:
    text = re.sub(r"\b([ei])\.\s?([ge])\.", r"\1 \2 ", text)
    words: list[str] = []
    for word in _WORD.findall(text.lower()):
        if word in _SENTENCE_END:
            if words:
                yield words
            words = []
        else:
            words.append(word)
    if words:
        yield words


def _marked(words: list[str], phrases: list[str]) -> str:
    """The sentence with ``NP0``, ``NP1`` ... in place of noun phrases, which are added to ``phrases``."""
    parts: list[str] = []
    run: list[str] = []
    for word in [*words, ""]:
        if word and word != "," and word not in _BREAKS and not word.isdigit():
            run.append(word)
            continue
        if run:
            parts.append(f"NP{len(phrases)}")
            phrases.append(" ".join(run[-_MOST_WORDS:]))
            run = []
        if word and word not in _ARTICLES:
            parts.append(word)
    return " ".join(parts)
