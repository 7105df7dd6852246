"""Text becomes documents, documents become contexts, and every token knows where it came from."""

import contextlib
import datetime
import itertools
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from datasets.exceptions import DatasetNotFoundError
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

import build_texts
from saeflow.config.language import Text
from saeflow.config.reading import parse
from saeflow.config.sections import ConfigError
from saeflow.datasets import concept_texts, contexts, corpus, text_files, texts
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
    with pytest.raises(texts.TextError, match="document 1 has half a surrogate pair at character 2"):
        texts.write(tmp_path / "e.parquet", ["é", "ab\ud800"])


def test_large_documents_are_written_and_read_a_few_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(texts, "_CHARACTERS", 100)
    documents = [f"{i} " * 30 for i in range(12)]
    assert texts.write(tmp_path / "d.parquet", documents) == 12
    assert parquet.read_metadata(tmp_path / "d.parquet").num_row_groups > 5
    assert list(texts.read(tmp_path / "d.parquet")) == list(enumerate(documents))


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


def of_files(folder, separator="<|endoftext|>", column="text"):
    return list(texts.documents_of(texts.files_of(folder), separator, column))


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_ends_of_lines_and_byte_order_marks_are_no_text(tmp_path, end):
    whole = ["one", "two", "<|endoftext|>", "", "three", "<|endoftext|>", "four"]
    marked = "".join(f"{line}{end}" for line in ["\ufeff<|endoftext|>", *whole, "\ufeff<|endoftext|>", "\ufefffive"])
    (tmp_path / "a.TXT").write_bytes(marked.encode())
    (tmp_path / "._a.txt").write_bytes(b"\x00\x05\x16\x07")  # as macOS leaves beside a file
    assert of_files(tmp_path) == ["", "one\ntwo", "three", "four", "five"]
    pd.DataFrame({"text": ["\ufeffone", "two"]}).to_parquet(tmp_path / "b.parquet")
    assert list(texts.documents_of([tmp_path / "b.parquet"], "-", "text")) == ["one", "two"]


def test_each_line_can_be_a_document_and_empty_lines_can_divide(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\n two \nthree\u2028still\n", encoding="utf-8")
    assert [text for text in of_files(tmp_path, "\n") if text] == ["one", "two", "three\u2028still"]
    assert of_files(tmp_path, "\n\n") == ["one", "two \nthree\u2028still"]
    for separator in ("\n", "\n\n", "---", " § "):
        assert Text(separator=separator).separator == separator
    for separator in ("", "  ", "\t", "\n\n\n", "a\nb", "\ufeff--"):
        model = {"embedded": {}, "hook_points": ["model.layers.0"]}
        study = {"study": "s", "language": {"models": {"m": model}, "text": {"separator": separator}}}
        with pytest.raises(ConfigError, match=r"text\.separator: .* give a line that can be seen, or \"\\n\""):
            parse(study)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("a\né".encode("latin-1"), r"a\.txt, line 2: not UTF-8"),
        ("one".encode("utf-16"), r"a\.txt: UTF-16, not UTF-8"),
        (b"\xfe\xff" + "one".encode("utf-16-be"), r"a\.txt: UTF-16, not UTF-8"),
        ("one".encode("utf-32"), r"a\.txt: UTF-32, not UTF-8"),
        ("one\ntwo".encode("utf-16-le"), r"a\.txt, line 1: has a zero byte"),
        (b"one\n" * 50, r"a document of more than 100 characters; .* language\.text\.separator, now '<\|endoftext\|>'"),
        (b"one " * 50, r"a\.txt, line 1: longer than 100 characters"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "a pointer of Git LFS"),
    ],
)
def test_a_file_that_is_no_utf8_text_is_named_with_what_it_is(tmp_path, monkeypatch, content, said):
    for module in (texts, text_files):
        monkeypatch.setattr(module, "LONGEST", 100)
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(texts.TextError, match=said):
        of_files(tmp_path)
    # What else users bring as text is read in the same way.
    if "separator" not in said:
        said = said.replace(r"a\.txt", r"a\.\w+")
        (tmp_path / "a.yaml").write_bytes(content)
        with pytest.raises(texts.TextError, match=said):
            Hierarchy.load(tmp_path / "a.yaml")
        with pytest.raises(texts.TextError, match=said):
            concept_texts.read([tmp_path / "a.txt", tmp_path / "b.txt"])


def test_concepts_and_nouns_are_read_with_a_mark_and_any_ends_of_lines(tmp_path):
    for name in "ab":
        lines = [f"{name}\u2028é {i}" for i in range(20)]
        (tmp_path / f"{name}.txt").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    found = concept_texts.read([tmp_path / "a.txt", tmp_path / "b.txt"])
    assert found.sentences[:2] == ("a\u2028é 0", "a\u2028é 1")
    assert len(found.sentences) == 40
    content = "animal: {dog: {words: a b c d, says: [é]}}"
    (tmp_path / "h.yaml").write_bytes(b"\xef\xbb\xbf" + content.encode())
    assert Hierarchy.load(tmp_path / "h.yaml").children[0].says == ("é",)


KINDS = {
    "lists of texts": [["a", "b"]],
    "lists of lists of numbers": [[[1.5]]],
    "lists of numbers": [[1, 2]],
    "lists of messages": [[{"role": "user", "content": "a"}]],
    "messages": [{"from": "human", "value": "a"}],
    "structs": [{"title": "a"}],
    "numbers": [None, 1],
    "bytes": [b"a"],
    "values of the type date": [datetime.date(2020, 1, 1)],
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_column_of_something_else_than_text_is_refused_with_those_of_text(tmp_path, kind):
    table = pa.table({"text": KINDS[kind], "story": [None, "a"][-len(KINDS[kind]) :]})
    parquet.write_table(table, tmp_path / "train.parquet")
    said = rf"column 'text' \(language\.text\.column\) holds {kind}, expected text; columns of text are story"
    with pytest.raises(texts.TextError, match=said):
        of_files(tmp_path)
    if kind in ("lists of messages", "numbers"):  # `datasets` decodes some of the others itself
        with pytest.raises(texts.TextError, match=said.partition("; ")[0]):
            of_hub(tmp_path)


@pytest.mark.parametrize(
    "kind",
    [
        pa.string(),
        pa.large_string(),
        pa.string_view(),
        pa.dictionary(pa.int8(), pa.string()),
        pa.dictionary(pa.int32(), pa.large_string()),
    ],
    ids=str,
)
def test_every_kind_of_text_column_is_read_and_null_rows_are_counted(tmp_path, caplog, kind):
    column = pa.array([None, "a", "b", None])
    column = column.dictionary_encode().cast(kind) if pa.types.is_dictionary(kind) else column.cast(kind)
    parquet.write_table(pa.table({"the text.é": column}), tmp_path / "a.parquet")
    assert of_files(tmp_path, column="the text.é") == ["a", "b"]
    assert "column 'the text.é': 2 rows without a value left out" in caplog.text
    assert Text(column="the text.é").column == "the text.é"


def test_a_parquet_file_that_is_none_is_named(tmp_path):
    path = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"text": [f"story {i}" for i in range(500)]}), path)
    whole, middle = path.read_bytes(), path.stat().st_size // 2
    damaged = [
        whole[:200],
        whole[:-9],
        b"",
        b'{"text": "a story"}\n',
        whole[: middle - 500] + bytes(800) + whole[middle:],
    ]
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(texts.TextError, match=r"a\.parquet: no whole Parquet file; fetch or write it again"):
            of_files(tmp_path)
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(texts.TextError, match="a pointer of Git LFS"):
        of_files(tmp_path)
    parquet.write_table(pa.Table.from_arrays([pa.array(["a"])] * 2, ["text", "text"]), path)
    with pytest.raises(texts.TextError, match="several columns 'text'"):
        of_files(tmp_path)
    latin = pa.array([b"ok", b"\xe9"])
    parquet.write_table(pa.table({"text": pa.Array.from_buffers(pa.string(), 2, latin.buffers())}), path)
    with pytest.raises(texts.TextError, match="column 'text' has text that is not UTF-8"):
        of_files(tmp_path)


def of_hub(folder, **changes):
    section = {"dataset": str(folder), "subset": None, "split": "train", "revision": None, "streaming": True}
    return list(texts.documents_of_hub(SimpleNamespace(**section | {"column": "text"} | changes)))


@pytest.mark.parametrize("streaming", [True, False])
def test_a_data_set_of_the_hub_is_read_without_its_null_rows_or_refused_by_key(
    tmp_path, caplog, monkeypatch, streaming
):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "train.jsonl").write_text('{"text": null}\n{"text": "\\ufeffa"}\n{"n": 1}\n{"text": "b"}\n')
    assert of_hub(folder, streaming=streaming) == ["a", "b"]
    assert "column 'text': 2 rows without a value left out" in caplog.text
    for change, said in (
        ({"column": "story"}, r"language\.text\.column: .* has no 'story', but text, n"),
        ({"split": "valid"}, r"language\.text\.split: .*valid.*train"),
        ({"subset": "en"}, r"language\.text\.subset: .*'en' not found"),
    ):
        with pytest.raises(texts.TextError, match=said):
            of_hub(folder, streaming=streaming, **change)
    (folder / "train.jsonl").unlink()
    with pytest.raises(texts.TextError, match=r"language\.text\.dataset: .* cannot be read"):
        of_hub(folder, streaming=streaming)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (DatasetNotFoundError("Dataset 'a/b' is a gated dataset on the Hub."), r"\.dataset: a/b .*gated.*HF_TOKEN"),
        (
            DatasetNotFoundError("Dataset 'a/b' doesn't exist on the Hub or cannot be accessed."),
            r"\.dataset: .*the name",
        ),
        (DatasetNotFoundError("Revision 'x' doesn't exist for dataset 'a/b' on the Hub."), r"\.revision: a/b .*commit"),
        (ValueError("Config name is missing.\nPick one of ['en']\nExample of usage:\n\tx"), r"\.subset: .*\['en'\]$"),
        (ConnectionError("Couldn't reach 'a/b' on the Hub"), r"\.dataset: a/b cannot be read: Couldn't reach"),
        (RuntimeError("Dataset scripts are no longer supported, but found b.py"), r"\.dataset: a/b .*found b\.py$"),
    ],
)
def test_a_data_set_that_the_hub_does_not_give_is_told_with_its_key(monkeypatch, error, said):
    def refuse(*_, **__):
        raise error

    monkeypatch.setattr("datasets.load_dataset", refuse)
    with pytest.raises(texts.TextError, match=r"^language\.text" + said):
        of_hub("a/b")


def test_a_folder_without_text_is_refused(tmp_path):
    with pytest.raises(texts.TextError, match="neither"):
        texts.files_of(tmp_path)
    with pytest.raises(texts.TextError, match="is no folder"):
        texts.files_of(tmp_path / "lost")
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(texts.TextError, match="not UTF-8"):
        list(texts.documents_of(texts.files_of(tmp_path), "-", "text"))
    (tmp_path / "a.txt").write_bytes(b"")
    with pytest.raises(texts.TextError, match="no document is in it, or all are empty"):
        texts.write(tmp_path / "d.parquet", texts.documents_of(texts.files_of(tmp_path), "-", "text"))


def test_enough_documents_are_taken_and_no_more():
    stream = itertools.repeat("x" * 100)
    assert len(list(texts.enough(stream, 1000))) == 80
    # Of few large documents as many that each split has what it needs; empty ones have no number.
    for seed in range(5):
        taken = list(texts.enough(itertools.cycle(["x" * 10_000, " "]), 1000, seed=seed, held_out_share=0.1))
        dealt = [texts.split_of(i, seed, 0.1) for i in range(len(taken))]
        assert set(dealt) == {"train", "held_out"}
        assert len({*dealt[:-1]}) == 1


@pytest.mark.parametrize(
    ("section", "n", "said"),
    [
        (
            {"folder": "x"},
            1,
            r"1 document found in 1 file \(language\.text\.folder\), none of which falls to the split",
        ),
        (
            {"folder": "x", "separator": "---"},
            2,
            r"2 documents .* language\.text\.separator, now '---', names the line",
        ),
        (
            {"dataset": "a/b", "revision": "main"},
            1,
            r"1 document found in a/b \(language\.text\.dataset\).* each row is",
        ),
        ({"documents": 1}, 1, r"1 document found in the embedded corpus, .*; raise language\.text\.documents"),
    ],
)
def test_documents_too_few_for_two_splits_are_counted_with_the_key_that_divides_them(section, n, said):
    section = Text(**section)
    seed = next(
        seed for seed in range(50) if len({texts.split_of(i, seed, section.held_out_share) for i in range(n)}) == 1
    )
    with pytest.raises(texts.TextError, match=said):
        texts.check_splits(n, 1, section, seed)
    texts.check_splits(100, 1, section, seed)


def test_text_that_is_one_document_is_told_before_a_model_reads_it(tmp_path):
    (tmp_path / "a.txt").write_text("a story on one line\n" * 500)
    cfg = {"text": {"folder": "given", "train_tokens": 100, "held_out_tokens": 20}, "seed": 0}
    files, documents = [tmp_path / "a.txt"], tmp_path / "d.parquet"
    with pytest.raises(texts.TextError, match=r"1 document found in 1 file .* makes each line a document"):
        build_texts.main(raw=files, documents=documents, cfg=cfg)
    cfg["text"]["separator"] = "\n"
    build_texts.main(raw=files, documents=documents, cfg=cfg)
    dealt = [texts.split_of(number, 0, 1 / 6) for number, _ in texts.read(documents)]
    assert dealt.count("train") >= 100 * 8 / 19
    assert dealt.count("held_out") >= 20 * 8 / 19


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
    text = position.ravel() != contexts.NO_TEXT
    columns = (array.ravel()[text].tolist() for array in (document, position, tokens))
    found = list(zip(*columns, strict=True))
    assert found == stream[: len(found)]
    if start is not None:
        assert (tokens[:, 0] == start).all()
        assert (tokens[position == contexts.NO_TEXT] == start).all()
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
