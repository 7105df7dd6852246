"""Text becomes documents, documents become contexts, and every token knows where it came from."""

import contextlib
import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saeflow.datasets import contexts, corpus, texts
from saeflow.datasets.hierarchy import Hierarchy, HierarchyError

NOUNS = Path(__file__).parents[2] / "config" / "concepts" / "hierarchy.yaml"


@pytest.fixture(scope="module")
def hierarchy() -> Hierarchy:
    return Hierarchy.load(NOUNS)


def test_the_hierarchy_has_the_size_that_geometry_needs(hierarchy):
    assert len(hierarchy.parents) == 23
    assert len(hierarchy.children) == 85
    assert all(13 <= len(child.words) <= 16 for child in hierarchy.children)
    assert len(set(hierarchy.words)) == len(hierarchy.words) > 1100


def test_no_other_word_of_the_corpus_is_a_noun_of_the_hierarchy(hierarchy):
    other = {word for child in hierarchy.children for phrase in child.says for word in phrase.split()}
    other |= set(corpus._NAMES + corpus._VERBS + corpus._WHEN + corpus._QUALITIES)
    assert other & set(hierarchy.words) == set()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("animal: {dog: {words: a b c d, says: [x]}, cat: {words: e f a g, says: [x]}}", "'a' stands twice, in dog"),
        ("animal: {dog: {words: a b dog d, says: [x]}}", "'dog' stands twice"),
        ("animal: {dog: {words: a B c d, says: [x]}}", "'B' is not a single lower-case word"),
        ("animal: {dog: {words: a b c, says: [x]}}", "3 words, 1 says"),
        ("animal: {dog: {words: a b c d}}", "expected the keys `words` and `says`"),
        (
            "animal: {dog: {words: a b c d, says: is big}}",
            "expected `words: a text of words` and `says: .a list of text",
        ),
        ("animal: {dog: {words: [a, b], says: [x]}}", "expected `words: a text of words`"),
        (
            "animal:\n  dog: {words: a b c d, says: [x]}\n  dog: {words: e f g h, says: [x]}",
            "lines 2 and 3: animal.dog is",
        ),
        ("animal: {no: {words: a b c d, says: [x]}}", "line 1, column 10: the key 'no' is no text to YAML"),
        ("animal: [dog", "line 1, column 13: a '.' that is not closed"),
        ("animal: [dog]", "expected children"),
        ("[animal]", "expected parents"),
    ],
)
def test_a_hierarchy_that_is_none_is_refused(tmp_path, content, said):
    (tmp_path / "h.yaml").write_text(content)
    with pytest.raises(HierarchyError, match=said):
        Hierarchy.load(tmp_path / "h.yaml")


def test_the_corpus_is_the_same_again_and_a_longer_one_begins_with_a_shorter_one(hierarchy):
    long = list(corpus.documents(hierarchy, 30, 1))
    assert list(corpus.documents(hierarchy, 20, 1)) == long[:20]
    assert list(corpus.documents(hierarchy, 20, 2)) != long[:20]


def test_the_corpus_names_every_noun_and_says_where_it_belongs(hierarchy):
    docs = list(corpus.documents(hierarchy, 4000, 0))
    count = Counter(word for doc in docs for word in doc.split())
    assert min(count[word] for word in hierarchy.words) >= 10
    assert 80 < np.mean([len(doc.split()) for doc in docs]) < 120
    # What follows "such as the" names a noun of the category before it.
    place = {word: child for child in hierarchy.children for word in child.words}
    for doc in docs[:500]:
        for sentence in doc.split(" . "):
            if sentence.startswith("any "):
                words = sentence.split()
                assert place[words[words.index("as") + 2]].name == words[1]


def test_documents_are_written_numbered_and_read_as_they_were(tmp_path):
    given_texts = [f"text {i}" for i in range(5000)]
    given_texts.insert(3, "  ")
    assert texts.write(tmp_path / "d.parquet", given_texts) == 5000
    assert list(texts.read(tmp_path / "d.parquet")) == [(i, f"text {i}") for i in range(5000)]
    with pytest.raises(texts.TextError, match="no document"):
        texts.write(tmp_path / "e.parquet", ["", "\n"])


def test_splits_are_apart_have_their_share_and_stay_when_documents_are_added():
    first = [texts.split_of(i, 0, 0.2) for i in range(2000)]
    assert 0.17 < first.count("held_out") / 2000 < 0.23
    assert [texts.split_of(i, 0, 0.2) for i in range(4000)][:2000] == first


def test_a_folder_of_text_files_gives_the_documents_between_separators(tmp_path):
    (tmp_path / "b.txt").write_text("one\ntwo\n<|endoftext|>\nthree\n")
    (tmp_path / "a.txt").write_text("zero")
    found = texts.documents_of(texts.files_of(tmp_path), "<|endoftext|>", "text")
    assert list(found) == ["zero", "one\ntwo", "three"]


def test_a_folder_of_parquet_files_gives_a_column(tmp_path):
    pd.DataFrame({"story": ["a", "b"], "id": [1, 2]}).to_parquet(tmp_path / "x.parquet")
    files = texts.files_of(tmp_path)
    assert list(texts.documents_of(files, "-", "story")) == ["a", "b"]
    with pytest.raises(texts.TextError, match=r"no column 'text', but story, id: set language\.text\.column"):
        list(texts.documents_of(files, "-", "text"))


def test_a_folder_without_text_is_refused(tmp_path):
    with pytest.raises(texts.TextError, match="neither"):
        texts.files_of(tmp_path)
    with pytest.raises(texts.TextError, match="is no folder"):
        texts.files_of(tmp_path / "lost")
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(texts.TextError, match="not UTF-8"):
        list(texts.documents_of(texts.files_of(tmp_path), "-", "text"))


def test_enough_documents_are_taken_and_no_more():
    stream = itertools.repeat("x" * 100)
    assert len(list(texts.enough(stream, 1000))) == 80


def encode(batch):
    """A token per letter."""
    return [[ord(letter) for letter in text] for text in batch]


def quietly(packed):
    """What is packed before the text ends."""
    with contextlib.suppress(texts.TextError):
        yield from packed


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.text("abcdef", min_size=1, max_size=30), min_size=1, max_size=12),
    st.integers(2, 9),
    st.sampled_from([0, None]),
    st.integers(1, 40),
)
def test_packing_loses_no_token_and_no_boundary(docs, size, start, wanted):
    packed = contexts.pack(enumerate(docs), encode, start=start, context_size=size, n_tokens=wanted, encoded_at_once=3)
    parts = list(quietly(packed))
    if not parts or sum(int(p.is_text.sum()) for p in parts) < wanted:
        with pytest.raises(texts.TextError, match=f"{wanted} tokens are asked for"):
            list(contexts.pack(enumerate(docs), encode, start=start, context_size=size, n_tokens=wanted))
        return
    tokens, document, position = (
        np.concatenate([getattr(p, name) for p in parts]) for name in ("tokens", "document", "position")
    )
    stream = [(d, p, ord(letter)) for d, text in enumerate(docs) for p, letter in enumerate(text)]
    text = position.ravel() != contexts.START
    columns = (array.ravel()[text].tolist() for array in (document, position, tokens))
    found = list(zip(*columns, strict=True))
    assert found == stream[: len(found)]
    if start is not None:
        assert (tokens[:, 0] == start).all()
        assert (tokens[position == contexts.START] == start).all()
        # Between two documents in a context there is a start token.
        flat = list(zip(document.ravel().tolist(), text.tolist(), strict=True))
        assert all(a == b or not here for (a, _), (b, here) in itertools.pairwise(flat))
    rows = sum(int(p.is_text.sum()) for p in parts)
    assert rows >= wanted
    assert rows - int(parts[-1].is_text[-1].sum()) < wanted


def test_a_split_that_fills_no_context_is_told():
    for docs in ([], [(0, "abc")]):
        with pytest.raises(texts.TextError, match="do not fill a context of 8 tokens"):
            list(contexts.pack(docs, encode, start=1, context_size=8, n_tokens=None))


def test_contexts_are_read_as_they_were_written(tmp_path):
    docs = [(i, "abc" * (i + 1)) for i in range(300)]
    groups = list(contexts.pack(docs, encode, start=1, context_size=8, n_tokens=5000))
    contexts.write(tmp_path / "c.parquet", groups, context_size=8, start=1)
    file = contexts.TokenFile.open(tmp_path / "c.parquet")
    assert (file.context_size, file.start, len(file)) == (8, 1, sum(map(len, groups)))
    for name in ("tokens", "document", "position"):
        whole = np.concatenate([getattr(group, name) for group in groups])
        assert np.array_equal(getattr(contexts.Contexts.concatenate(file.batches(100)), name), whole)
        assert np.array_equal(np.concatenate([getattr(b, name) for b in file.batches(7)]), whole)


def test_a_file_of_something_else_is_no_file_of_contexts(tmp_path):
    texts.write(tmp_path / "d.parquet", ["a"])
    with pytest.raises(texts.TextError, match="not a file of contexts"):
        contexts.TokenFile.open(tmp_path / "d.parquet")
