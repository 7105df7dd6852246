"""Concepts as tokens: what is kept, held out and excluded, from a file's hierarchy and from WordNet."""

import numpy as np
import pytest

from saeflow.datasets import wordnet
from saeflow.geometry.concepts import Concepts, build, forms, prompts, single_tokens

ANIMALS = {"bird": ["crow", "owl", "finch", "swan"], "fish": ["cod", "eel", "pike", "trout"], "": ["beast"]}
TOOLS = {"saw": ["jigsaw", "hacksaw", "fretsaw"], "knife": ["dagger", "penknife", "scalpel", "crow"], "file": ["rasp"]}
WORDS = {word: i for i, word in enumerate(w for group in (ANIMALS, TOOLS) for ws in group.values() for w in ws)}


def test_only_whole_words_of_the_vocabulary_are_words():
    marked = {"<s>": 0, "▁dog": 1, "s": 2, "▁Dog": 3, "▁42": 4, "dog": 5, "▁": 6}
    assert single_tokens(marked) == {"dog": 1, "Dog": 3}
    assert single_tokens({"Ġcat": 0, "at": 1}) == {"cat": 0}
    assert single_tokens({"cat": 0, "dog": 1, "<pad>": 2}, excluded=[1]) == {"cat": 0}


def test_exclusions_are_counted():
    words = {word: i for word, i in WORDS.items() if word not in ("eel", "pike")}
    hierarchy = {"animal": ANIMALS, "tool": TOOLS, "mineral": {"gem": ["ruby"]}}
    with pytest.raises(ValueError, match="1 of 3 parents keep 2 children"):
        build(hierarchy, words, seed=0, min_words=3)
    concepts, counts = build(hierarchy, WORDS, seed=0, min_words=3)
    assert concepts.parents == ("animal", "tool")
    assert concepts.children == ("animal/bird", "animal/fish", "tool/saw", "tool/knife")
    assert concepts.parent_of.tolist() == [0, 0, 1, 1]
    assert "crow" not in set(concepts.table["text"])
    assert counts["several places"] == 2
    assert counts["not one token"] == 1
    assert counts["children with too few words"] == 2
    assert counts["parents with too few children"] == 1
    assert counts["kept words"] == 7 + 1 + 6
    assert concepts.table.query("text == 'beast'")["child"].item() == -1


def test_forms_of_a_lemma_are_held_out_together():
    vocabulary = {form: i for i, form in enumerate(f for w in WORDS for f in forms(w))}
    concepts, _ = build({"animal": ANIMALS, "tool": TOOLS}, vocabulary, seed=3, min_words=3, all_forms=True)
    by_lemma = concepts.table.groupby("lemma")["held_out"]
    assert (by_lemma.nunique() == 1).all()
    assert (by_lemma.size() == 3).all()
    assert concepts.held_out.any()
    assert not concepts.held_out.all()
    again, _ = build({"animal": ANIMALS, "tool": TOOLS}, vocabulary, seed=3, min_words=3, all_forms=True)
    assert again.table.equals(concepts.table)


def test_concepts_are_read_as_they_were_written(tmp_path):
    concepts, _ = build({"animal": ANIMALS, "tool": TOOLS}, WORDS, seed=0, min_words=3)
    concepts.save(tmp_path / "concepts.parquet")
    read = Concepts.load(tmp_path / "concepts.parquet")
    assert (read.parents, read.children) == (concepts.parents, concepts.children)
    assert read.parent_of.tolist() == concepts.parent_of.tolist()
    assert read.table.equals(concepts.table)


def test_prompts_name_no_word_that_is_held_out():
    concepts, _ = build({"animal": ANIMALS, "tool": TOOLS}, WORDS, seed=0, min_words=3)
    found = prompts(concepts, ["a {concept} such as {word}, {word2} or"], 20, seed=1)
    assert found["parent"].value_counts().tolist() == [20, 20]
    held_out = set(concepts.table[concepts.held_out]["text"])
    assert held_out
    said = " ".join(found["prompt"]).replace(",", " ").split()
    assert not held_out & set(said)
    assert np.array_equal(found["parent"], concepts.parent_of[found["child"]])


def test_wordnet_finds_animals_and_leaves_out_what_is_mostly_a_verb(data_dir, monkeypatch):
    import nltk

    monkeypatch.setattr(nltk.data, "path", [str(data_dir / "nltk_data")])
    words = ["dog", "cat", "horse", "wolf", "sparrow", "eagle", "owl", "run", "go", "table"]
    above = wordnet.synsets_of(words)
    assert "animal.n.01" in above["eagle"]
    assert "run" not in above
    found = wordnet.hierarchies(words, ["vertebrate.n.01"], min_words=2)
    groups = found["vertebrate.n.01"]
    assert groups["mammal.n.01"] == ["cat", "dog", "horse", "wolf"]
    assert sum(len(group) for group in groups.values()) == len({w for group in groups.values() for w in group})
    with pytest.raises(wordnet.WordNetError, match=r"animal\.n\.01"):
        wordnet.hierarchies(words, ["nosuchthing.n.01"])
