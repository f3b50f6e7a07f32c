"""Directories of models that lack something, and adapters."""

import importlib.util
import json
import shutil

import pytest
import torch
from tiny import save_model, tiny_model, tiny_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from groupsae import model_directory
from groupsae.errors import ModelError, TextError
from groupsae.evaluation.circuits.pairs import PromptPair
from groupsae.evaluation.circuits.prompts import SPLIT_ANSWER, tokenize_pairs
from groupsae.model_structure import base_model, find_hookpoints, residual_stream
from groupsae.models import load_model, load_model_config
from groupsae.text.tokenizing import begin_token, known_text
from groupsae.text.tokens import TokenRows


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"), tiny_model())


def message_of(folder):
    with pytest.raises(ModelError) as caught:
        load_model(str(folder), device="cpu")
    return str(caught.value)


def test_an_empty_directory_is_said_to_be_empty(tmp_path):
    assert "holds no config.json. It holds nothing. A directory with config.json" in message_of(tmp_path)


def test_the_config_alone_says_the_same(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "checkpoint-5")
    with pytest.raises(ModelError, match=r"holds no config\.json\. It holds checkpoint-5/"):
        load_model_config(str(tmp_path))


def test_a_model_in_checkpoints_is_found_in_the_last(saved, tmp_path):
    for name in ("checkpoint-90", "checkpoint-500"):
        shutil.copytree(saved, tmp_path / name)
    message = message_of(tmp_path)
    assert "holds no config.json. It holds checkpoint-500/, which does (of 2 such directories the last)." in message
    assert f"Give '{tmp_path}/checkpoint-500'." in message


def test_an_adapter_in_a_checkpoint_is_found(tmp_path):
    (tmp_path / "checkpoint-5").mkdir()
    (tmp_path / "checkpoint-5/adapter_config.json").write_text("{}")
    assert f"It holds the adapter checkpoint-5/. Give '{tmp_path}/checkpoint-5'." in message_of(tmp_path)


def test_a_directory_with_a_gguf_file_only_says_so(tmp_path):
    (tmp_path / "tiny.gguf").write_bytes(b"GGUF")
    assert "tiny.gguf" in message_of(tmp_path)


def test_weights_without_a_config_are_named(saved, tmp_path):
    shutil.copy(saved / "model.safetensors", tmp_path)
    assert "It holds model.safetensors. Put the model's config.json and tokenizer beside it." in message_of(tmp_path)


def test_a_directory_without_tokenizer_files_says_how_to_write_them(saved, tmp_path):
    for name in ("config.json", "model.safetensors"):
        shutil.copy(saved / name, tmp_path)
    message = message_of(tmp_path)
    assert "has no tokenizer: the directory holds no tokenizer.json" in message
    assert "It holds config.json, model.safetensors." in message
    assert "save_pretrained" in message


# ---- adapters


def write_adapter(folder, base):
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base), "peft_type": "LORA"}))
    return folder


def test_an_adapter_without_peft_says_what_to_install(saved, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    message = message_of(write_adapter(tmp_path / "adapter", saved))
    assert f"is a PEFT adapter of '{saved}', and the library peft is not installed" in message
    assert "pip install peft" in message and "merge_and_unload" in message


def test_an_adapter_whose_base_is_not_there_names_the_key(tmp_path):
    message = message_of(write_adapter(tmp_path / "adapter", "../no/such/base"))
    assert "'../no/such/base', and there is no such directory. Set base_model_name_or_path" in message


def test_an_adapter_that_names_no_base_says_to_merge(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    assert "names no base model" in message_of(tmp_path)


def test_the_config_of_an_adapter_is_that_of_its_base(saved, tmp_path):
    assert load_model_config(str(write_adapter(tmp_path / "adapter", saved))).num_hidden_layers == 3


def test_the_tokenizer_of_an_adapter_is_its_own_or_that_of_its_base(saved, tmp_path):
    folder = write_adapter(tmp_path / "adapter", saved)
    assert model_directory.tokenizer_place(str(folder)) == str(saved)
    tiny_tokenizer().save_pretrained(folder)
    assert model_directory.tokenizer_place(str(folder)) == str(folder)


def test_an_adapter_is_loaded_with_the_hookpoints_of_its_base(saved, tmp_path):
    peft = pytest.importorskip("peft")
    base, tokenizer = load_model(str(saved), device="cpu")
    options = peft.LoraConfig(r=2, target_modules=["query_key_value"], init_lora_weights=False)
    wrapped = peft.get_peft_model(base, options)
    wrapped.save_pretrained(tmp_path)
    ids = torch.arange(8)[None]
    expected = wrapped(ids).logits
    loaded, loaded_tokenizer = load_model(str(tmp_path), device="cpu")
    torch.testing.assert_close(loaded(ids).logits, expected)
    assert residual_stream(loaded) == residual_stream(wrapped) == residual_stream(tiny_model())
    assert loaded_tokenizer("ab")["input_ids"] == tokenizer("ab")["input_ids"]


class Wrapped(nn.Module):
    """What peft makes of a model: the model two levels down, under the name `base_model`."""

    def __init__(self, model, prompt=False):
        super().__init__()
        self.base_model = nn.ModuleDict({"model": model})
        self.config = model.config
        self.active_peft_config = type("Config", (), {"is_prompt_learning": prompt})

    def get_base_model(self):
        return self.base_model["model"]


def test_hookpoints_of_a_wrapped_model_are_those_of_the_model_inside():
    model = tiny_model()
    assert base_model(Wrapped(model)) is base_model(model)
    assert find_hookpoints(Wrapped(model), ["residual", "layers.*.mlp"]) == find_hookpoints(
        model, ["residual", "layers.*.mlp"]
    )


def test_an_adapter_that_adds_positions_is_refused():
    with pytest.raises(ModelError, match="prompt or prefix adapter"):
        residual_stream(Wrapped(tiny_model(), prompt=True))


# ---- tokenizers of other alphabets


def letters_tokenizer():
    """One token for each letter of DNA; other letters are dropped."""
    inner = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate("CGTN")}, merges=[]))
    return PreTrainedTokenizerFast(tokenizer_object=inner)


def words_tokenizer():
    """One token for each square of a board, and an error for all else."""
    vocabulary = {f"{column}{row}": index for index, (column, row) in enumerate((c, r) for c in "BC" for r in "123")}
    inner = Tokenizer(models.WordLevel(vocab=vocabulary, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner)


@pytest.mark.parametrize(("make", "text"), [(letters_tokenizer, "CGTN" * 40), (words_tokenizer, "B1 C3 B2 " * 40)])
def test_a_tokenizer_that_does_not_know_the_letter_a_is_used(make, text, tmp_path):
    tokenizer = make()
    config = GPT2Config(vocab_size=8, n_embd=8, n_layer=2, n_head=2, n_positions=32, bos_token_id=None)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    _, loaded = load_model(str(tmp_path), device="cpu")
    assert known_text(loaded) is not None
    assert begin_token(loaded) is None
    (tmp_path / "text.jsonl").write_text(json.dumps({"text": text}) + "\n")
    assert len(TokenRows.from_files(tmp_path / "text.jsonl", loaded, context_length=8)) >= 10


@pytest.mark.parametrize("make", [letters_tokenizer, words_tokenizer])
def test_prompts_that_a_tokenizer_does_not_know_are_left_out(make):
    pair = PromptPair("he is", "she was", "o", "u")
    pairs, dropped = tokenize_pairs([pair], make(), None)
    assert (pairs, dropped) == ([], {SPLIT_ANSWER: 1})


def test_text_that_a_tokenizer_refuses_is_an_error(tmp_path):
    (tmp_path / "a.txt").write_text("Once there was a fox")
    with pytest.raises(TextError, match=r"The tokenizer cannot read this text: .*begins with 'Once there"):
        TokenRows.from_files(tmp_path / "a.txt", words_tokenizer(), context_length=4)


def test_a_tokenizer_without_tokens_is_still_an_error(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "model")
    empty = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE(vocab={}, merges=[])))
    for file in (tmp_path / "model").glob("tokenizer*"):
        file.unlink()
    empty.save_pretrained(tmp_path / "model")
    assert "gives no tokens" in message_of(tmp_path / "model")
