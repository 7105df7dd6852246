"""Hierarchies of nouns from WordNet, through NLTK: words under synsets, in an order that no hash seed changes."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

OWN = ""


class WordNetError(ValueError):
    """WordNet is not installed, or has no such synset."""


def reader() -> Any:
    """NLTK's WordNet, looked for in the folders of NLTK_DATA.

    Raises:
        WordNetError: it is not there.
    """
    from nltk.corpus import wordnet

    try:
        wordnet.ensure_loaded()
    except LookupError:
        raise WordNetError(
            "geometry.concepts.source: WordNet is not found; set NLTK_DATA to a folder with corpora/wordnet.zip, or "
            "take concepts from a file"
        ) from None
    return wordnet


def check(synsets: Iterable[str]) -> None:
    """Refuse names that are none of WordNet's synsets.

    Raises:
        WordNetError: WordNet is missing, or it has no such synset.
    """
    wordnet = reader()
    for name in synsets:
        try:
            wordnet.synset(name)
        except Exception:  # NLTK raises kinds of its own for a name and for a number of a sense
            raise WordNetError(
                f"geometry.concepts.synsets: '{name}' is no synset of WordNet; one is written like 'animal.n.01'"
            ) from None


def digest() -> str:
    """sha256 of WordNet's files.

    Raises:
        WordNetError: it is not there.
    """
    wordnet = reader()
    digests = (hashlib.sha256(wordnet.raw(name).encode()).hexdigest() for name in sorted(wordnet.fileids()))
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def noun_share(wordnet: Any, word: str) -> float:
    """Share of a word's occurrences in WordNet's sense-tagged texts that are nouns; 1 for a word not seen there."""
    counts = {True: 0, False: 0}
    for synset in wordnet.synsets(word):
        counts[synset.pos() == "n"] += sum(x.count() for x in synset.lemmas() if x.name().lower() == word)
    return counts[True] / sum(counts.values()) if any(counts.values()) else 1.0


def synsets_of(words: Iterable[str], senses: int = 1, min_noun_share: float = 0.5) -> dict[str, list[str]]:
    """Noun synsets above each word that is a noun's lemma, the word's own included, sorted.

    Arguments:
        senses: of a word's senses, most frequent first, how many count.
        min_noun_share: least `noun_share` of a word.
    """
    wordnet = reader()
    above: dict[str, frozenset[str]] = {}

    def hypernyms(synset: Any) -> frozenset[str]:
        if synset.name() not in above:
            parents = [*synset.hypernyms(), *synset.instance_hypernyms()]
            above[synset.name()] = frozenset({synset.name()}.union(*map(hypernyms, parents)))
        return above[synset.name()]

    found = {}
    for word in sorted(set(words)):
        # A form that WordNet reduces to another lemma (a plural) comes by that lemma.
        own = [s for s in wordnet.synsets(word, pos="n") if word in (n.lower() for n in s.lemma_names())]
        if own and noun_share(wordnet, word) >= min_noun_share:
            names = frozenset().union(*map(hypernyms, own[:senses]))
            found[word] = sorted(names)
    return found


def hierarchies(
    words: Iterable[str],
    parents: Sequence[str] | None = None,
    *,
    senses: int = 1,
    min_noun_share: float = 0.5,
    min_words: int = 6,
    min_children: int = 2,
) -> dict[str, dict[str, list[str]]]:
    """Words by child by parent, for given synsets or for those that qualify.

    A child is a synset below the parent with `min_words` of the words or more, as near to the parent as possible;
    children do not share words, the one with more words comes first. Without `parents`, a synset qualifies when it has
    `min_children` such children and nothing below it does: the lowest ones, which do not contain one another.

    Arguments:
        words: texts that are one token each.
        parents: names of synsets such as `animal.n.01`.
    Raises:
        WordNetError: WordNet is missing, or it has no such synset.
    """
    wordnet = reader()
    members: dict[str, set[str]] = {}
    for word, names in synsets_of(words, senses, min_noun_share).items():
        for name in names:
            members.setdefault(name, set()).add(word)
    check(name for name in parents or () if name not in members)
    groups = {name: _children(wordnet, name, members, min_words) for name in parents or sorted(members)}
    if parents is None:
        fit = {name for name, children in groups.items() if len(children) >= min_children}
        groups = {name: groups[name] for name in sorted(fit) if not fit & set(_below(wordnet, name, members))}
    return {
        name: {**children, OWN: sorted(members.get(name, set()).difference(*children.values()))}
        for name, children in groups.items()
    }


def _hyponyms(wordnet: Any, name: str, members: Mapping[str, set[str]]) -> list[str]:
    synset = wordnet.synset(name)
    return sorted({s.name() for s in (*synset.hyponyms(), *synset.instance_hyponyms())} & set(members))


def _below(wordnet: Any, name: str, members: Mapping[str, set[str]]) -> Iterator[str]:
    for child in _hyponyms(wordnet, name, members):
        yield child
        yield from _below(wordnet, child, members)


def _children(wordnet: Any, name: str, members: Mapping[str, set[str]], min_words: int) -> dict[str, list[str]]:
    """Disjoint children: direct hyponyms with enough words; a chain of single children is stepped over."""
    direct = _hyponyms(wordnet, name, members)
    large = sorted((c for c in direct if len(members[c]) >= min_words), key=lambda c: (-len(members[c]), c))
    if len(large) == 1:
        return _children(wordnet, large[0], members, min_words)
    taken: set[str] = set()
    children = {}
    for child in large:
        rest = members[child] - taken
        if len(rest) >= min_words:
            children[child] = sorted(rest)
            taken |= rest
    return children
