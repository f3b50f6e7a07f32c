"""Documents into token ids: special tokens in texts, chat messages, ready ids."""

import json

import numpy as np
import pytest
from tiny import END_OF_TEXT, tiny_text, tiny_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from groupsae.errors import TextError
from groupsae.text import tokenizing
from groupsae.text.document import Document
from groupsae.text.notes import ReadingNotes
from groupsae.text.tokenizing import known_text, special_texts, tokenized
from groupsae.text.tokens import TokenRows

END = 256
TEMPLATE = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}<|endoftext|>{% endfor %}"


def encode(*documents, tokenizer=None, special="split"):
    notes = ReadingNotes()
    pairs = list(tokenized(documents, tokenizer or tiny_tokenizer(), notes, special))
    assert [document for document, _ in pairs] == list(documents)
    return [ids.tolist() for _, ids in pairs], notes


def test_a_special_token_that_a_text_spells_out_is_plain_text():
    text = f"one{END_OF_TEXT}two{END_OF_TEXT}"
    (plain, ids), notes = encode(Document("plain"), Document(text))
    assert END not in ids and tiny_tokenizer().decode(ids) == text
    assert plain == tiny_tokenizer()("plain")["input_ids"]
    assert notes.sentences() == ["2 special tokens written in the text, read as plain text"]


def test_special_tokens_in_texts_can_be_kept():
    (ids,), notes = encode(Document(f"one{END_OF_TEXT}two"), special="keep")
    assert ids.count(END) == 1
    assert notes.sentences() == ["1 special token written in the text, kept as special tokens"]


def test_the_tokenizer_is_left_as_it_was():
    tokenizer = tiny_tokenizer()
    encode(Document(END_OF_TEXT), tokenizer=tokenizer)
    assert tokenizer(END_OF_TEXT)["input_ids"] == [END]


def test_a_tokenizer_that_cannot_split_special_tokens_is_told_of():
    inner = Tokenizer(models.WordLevel(vocab={"</s>": 0, "fox": 1, "[UNK]": 2}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>", unk_token="[UNK]")
    (ids,), notes = encode(Document("fox </s> fox bear"), tokenizer=tokenizer)
    assert ids == [1, 0, 1, 2]
    assert (notes.num_special_split, notes.num_special_kept) == (0, 1)


def test_a_long_text_is_searched_for_special_tokens_as_well(monkeypatch):
    monkeypatch.setattr(tokenizing, "CHARACTERS_AT_ONCE", 40)
    (ids, short), notes = encode(Document(f"{tiny_text(30)} {END_OF_TEXT} {tiny_text(30)}"), Document("short"))
    assert END not in ids and short
    assert notes.num_special_split == 1


def test_single_letters_do_not_count_as_special_tokens():
    inner = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate("ACGTN")}, merges=[]))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="N", pad_token="<pad>")
    assert special_texts(tokenizer) == ["<pad>"]
    assert known_text(tokenizer) is not None


def test_text_without_any_token_is_counted(tmp_path):
    inner = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate("ACGT")}, merges=[]))
    rows = [{"text": "ACGT" * 20}, {"text": "xyz"}, {"text": "CATTAG" * 20}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = TokenRows.from_files(
        tmp_path / "a.jsonl", PreTrainedTokenizerFast(tokenizer_object=inner), context_length=4
    )
    assert found.notes == ("1 document left out: the tokenizer knows none of its text",)


# ---- chat messages


def chat(*contents):
    roles = ("user", "assistant")
    return Document("", messages=tuple({"role": roles[i % 2], "content": text} for i, text in enumerate(contents)))


@pytest.mark.parametrize("begin", [False, True])
def test_chat_messages_go_through_the_template_of_the_tokenizer(begin):
    tokenizer = tiny_tokenizer(begin=begin)
    tokenizer.chat_template = ("<|begin|>" if begin else "") + TEMPLATE
    (ids,), _ = encode(chat("hello", "you"), tokenizer=tokenizer)
    assert tokenizer.decode(ids) == f"[user]hello{END_OF_TEXT}[assistant]you{END_OF_TEXT}"
    assert ids.count(END) == 2


def test_special_tokens_in_messages_are_counted():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    _, notes = encode(chat(f"a {END_OF_TEXT} b"), tokenizer=tokenizer)
    assert notes.num_special_kept == 1


def test_messages_without_a_template_are_an_error():
    with pytest.raises(TextError, match=r"chat template, but the tokenizer has none\. Take a model with"):
        encode(chat("hello"))


def test_a_template_that_refuses_is_an_error_with_its_reason():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(TextError, match="but it fails: roles must alternate"):
        encode(chat("hello"), tokenizer=tokenizer)


# ---- ready ids


def ready(*ids):
    return Document("", ids=np.array(ids, dtype=np.int64))


def test_ready_ids_are_taken_as_they_are_without_what_rows_add():
    (plain, framed), _ = encode(ready(5, 6), ready(257, 5, END, 6, END, END), tokenizer=tiny_tokenizer(begin=True))
    assert (plain, framed) == ([5, 6], [5, END, 6])


def test_ready_ids_beyond_the_vocabulary_are_an_error():
    with pytest.raises(TextError, match=r"token id 300, but the tokenizer knows 257 tokens \(0 to 256\)"):
        encode(ready(5, 300))


def test_rows_of_ready_ids_are_those_of_their_text(tmp_path):
    tokenizer, texts = tiny_tokenizer(), [f"{number} {tiny_text(5, number)}" for number in range(30)]
    rows = [{"input_ids": tokenizer(text)["input_ids"], "text": text} for text in texts]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = TokenRows.from_files(tmp_path / "a.jsonl", tokenizer, context_length=8, field="input_ids")
    assert found.num_documents + found.held_out.num_documents == 30
    assert {tokenizer.decode(row) for row in found.ids_RT.tolist()}
