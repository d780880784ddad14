"""The vocabulary: each word is one entry, and entries that earlier weights rely on stay."""

from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerFast

from foveate.lab import samples
from foveate.lab.canvas import EDGES, Layer
from foveate.lab.losses import WordTable
from foveate.lab.network import PLANE_SIZES
from foveate.lab.tasks import FAMILIES
from foveate.lab.tokenizer import MAX_LENGTH, build_tokenizer
from foveate.lab.words import NOTES, WORDS, normalise, vocabulary

# Byte entries read as slots and as bar values above nine, in this order, by trained weights.
SLOTS = [0x133, 0x134, 0x135, 0x136, 0x137, 0x138, 0x139]
VALUES = [0x13A, 0x13B, 0x13C, 0x13D, 0x13E, 0x13F, 0x140, 0x141, 0x142, 0x143]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer()


def test_each_word_is_one_entry(tokenizer: PreTrainedTokenizerFast) -> None:
    split = [
        word
        for word in vocabulary()
        if len(tokenizer.encode(" " + word, add_special_tokens=False)) != 1
    ]
    assert split == []
    assert tokenizer.model_max_length == MAX_LENGTH > 64 * 197 + 100


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_questions_and_answers_hold_no_unknown_piece(
    tokenizer: PreTrainedTokenizerFast, name: str
) -> None:
    known = set(vocabulary())
    for level in range(FAMILIES[name].levels):
        for sample in samples(name, "test", 4, level=level):
            words = normalise(sample.question).split()
            assert set(words) <= known
            asked = tokenizer.encode(" " + normalise(sample.question), add_special_tokens=False)
            assert len(asked) == len(words)
            blank = " " if sample.answer[0].islower() else ""
            answer = tokenizer.encode(blank + sample.answer, add_special_tokens=False)
            spelled = len(sample.answer.split()) if blank else len(sample.answer)
            assert len(answer) == spelled


def test_entries_of_earlier_weights_stay(tokenizer: PreTrainedTokenizerFast) -> None:
    table = WordTable(tokenizer)
    slots = tokenizer.convert_ids_to_tokens(table.entries[Layer.SLOT][1:].tolist())
    assert [ord(token) for token in slots] == SLOTS
    values = table.entries[Layer.WORD][1 + len(WORDS) : -len(NOTES)]
    named = tokenizer.convert_ids_to_tokens(values.tolist())
    assert named[:9] == list("123456789")
    assert [ord(token) for token in named[9:]] == VALUES


def test_every_label_has_an_entry_of_its_own(tokenizer: PreTrainedTokenizerFast) -> None:
    table = WordTable(tokenizer)
    for layer, row in table.entries.items():
        assert len(row) == PLANE_SIZES[layer], layer.name
        assert len(row.unique()) == len(row), layer.name
    edges = table.edges.flatten().tolist()
    assert len(set(edges)) == len(EDGES) * 13
    assert not set(edges) & set(table.used.tolist())
    texts = {
        entry
        for word in vocabulary()
        for entry in tokenizer.encode(" " + word, add_special_tokens=False)
    }
    assert not texts & set(edges)
