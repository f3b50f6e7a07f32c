"""GGUF files: what their headers say, and every way in which one cannot be read."""

import struct

import pytest
from tiny import save_model, tiny_model

from groupsae import gguf_files
from groupsae.errors import FitError, ModelError
from groupsae.gguf_files import GGUFFacts, read_gguf, require_loadable
from groupsae.models import has_weights, load_model, load_model_config

F32, Q4_0 = 0, 2
STRING, UINT32, ARRAY = 8, 4, 9


def text(value):
    return struct.pack("<Q", len(value)) + value.encode()


def write_gguf(path, architecture="llama", tensors=(("a", F32, (4, 8)), ("b", Q4_0, (32, 2))), version=3):
    """A GGUF file with these tensors, all zero; its keys hold a string, a number, and lists of both."""
    keys = text("general.architecture") + struct.pack("<I", STRING) + text(architecture)
    keys += text("llama.block_count") + struct.pack("<II", UINT32, 2)
    keys += text("tokenizer.ggml.tokens") + struct.pack("<IIQ", ARRAY, STRING, 2) + text("one") + text("two")
    keys += text("tokenizer.ggml.token_type") + struct.pack("<IIQ", ARRAY, UINT32, 3) + bytes(12)
    infos, offset = b"", 0
    for name, kind, shape in tensors:
        infos += text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)
        numbers = shape[0] * shape[1]
        offset += -(-(numbers * 4 if kind == F32 else numbers // 32 * 18) // 32) * 32
    header = b"GGUF" + struct.pack("<IQQ", version, len(tensors), 4) + keys + infos
    path.write_bytes(header + bytes(-len(header) % 32) + bytes(offset))
    return path


def test_a_header_tells_what_the_file_holds(tmp_path):
    path = write_gguf(tmp_path / "tiny.gguf")
    facts = read_gguf(path)
    assert facts == GGUFFacts("tiny.gguf", "llama", 4 * 8 + 64, path.stat().st_size, {"F32": 1, "Q4_0": 1})
    assert facts.to_json()["tensors"] == {"F32": 1, "Q4_0": 1}


@pytest.mark.parametrize("kept", [0, 3, 20, 40, 60, 100, 150, 200, 250])
def test_a_file_cut_off_anywhere_is_refused_by_its_name(kept, tmp_path):
    path = write_gguf(tmp_path / "tiny.gguf")
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ModelError, match=r"tiny\.gguf"):
        load_model(str(path))


def test_a_file_without_its_last_tensors_says_how_long_it_should_be(tmp_path):
    path = write_gguf(tmp_path / "tiny.gguf", tensors=[("a", F32, (64, 64))])
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(ModelError, match=rf"truncated: .* up to byte {len(whole):,}, but it has {len(whole) - 100:,} "):
        load_model(str(path))


@pytest.mark.parametrize("place", range(4, 200, 7))
def test_a_damaged_header_is_no_traceback(place, tmp_path):
    path = write_gguf(tmp_path / "tiny.gguf")
    data = bytearray(path.read_bytes())
    data[place : place + 8] = b"\xff" * 8
    path.write_bytes(data)
    try:
        read_gguf(path)
    except ModelError as error:
        assert "tiny.gguf" in str(error)


def test_something_else_under_the_name_is_refused(tmp_path):
    (tmp_path / "fake.gguf").write_text("a text that is long enough to be a header")
    with pytest.raises(ModelError, match="does not begin with the letters GGUF"):
        load_model(str(tmp_path / "fake.gguf"))


def test_an_architecture_that_transformers_does_not_read_is_refused_with_those_it_does(tmp_path):
    path = write_gguf(tmp_path / "tiny.gguf", architecture="rwkv9")
    with pytest.raises(ModelError, match=r"architecture 'rwkv9'.*It reads .*llama"):
        load_model(str(path))


@pytest.mark.parametrize("name", ["qwen2moe", "qwen2_moe", "gpt-oss", "llama"])
def test_architectures_are_known_however_they_are_written(name, monkeypatch):
    monkeypatch.setattr(gguf_files, "find_spec", lambda package: True)
    require_loadable(GGUFFacts("x.gguf", name, 1, 1, {}), 4)


def test_missing_packages_are_named_with_the_command(tmp_path, monkeypatch):
    monkeypatch.setattr(gguf_files, "find_spec", lambda package: None)
    with pytest.raises(ModelError, match=r"packages gguf and accelerate.*pip install 'groupsae\[gguf\]'"):
        load_model(str(write_gguf(tmp_path / "tiny.gguf")))


def test_a_model_too_large_for_memory_is_refused_with_its_size(monkeypatch):
    monkeypatch.setattr(gguf_files, "find_spec", lambda package: True)
    monkeypatch.setattr(gguf_files, "free_memory", lambda: 2**30)
    with pytest.raises(FitError, match=r"70,000,000,000 parameters, 130 GiB once dequantized; 1 GiB of main memory"):
        require_loadable(GGUFFacts("x.gguf", "llama", 70_000_000_000, 1, {}), 2)
    require_loadable(GGUFFacts("x.gguf", "llama", 2**28, 1, {}), 4)


def test_a_directory_is_read_by_the_name_of_its_file(tmp_path):
    write_gguf(tmp_path / "tiny.gguf")
    with pytest.raises(ModelError, match=r"no config.json, but it holds tiny.gguf. Set model.gguf_file = 'tiny.gguf'"):
        load_model(str(tmp_path))
    with pytest.raises(ModelError, match=r"There is no model.gguf_file = 'other.gguf'.*it holds tiny.gguf"):
        load_model_config(str(tmp_path), gguf_file="other.gguf")
    with pytest.raises(ModelError, match="is a GGUF file itself"):
        load_model(str(tmp_path / "tiny.gguf"), gguf_file="other.gguf")
    assert has_weights(str(tmp_path / "tiny.gguf")) and has_weights(str(tmp_path), "tiny.gguf")


def test_a_gguf_file_beside_other_weights_is_left_alone(tmp_path):
    save_model(tmp_path, tiny_model())
    write_gguf(tmp_path / "tiny.gguf")
    assert load_model(str(tmp_path), device="cpu")[0].config.model_type == "gpt_neox"


@pytest.mark.parametrize("by_directory", [True, False])
def test_a_tiny_model_is_dequantized(tmp_path, by_directory):
    """Needs the extra `gguf`: the file is written by the package's own writer."""
    gguf = pytest.importorskip("gguf")
    pytest.importorskip("accelerate")
    import numpy as np

    width, inside, words = 32, 64, [f"w{index}" for index in range(59)] + ["ab", "a", "b", "<s>", "</s>"]
    writer = gguf.GGUFWriter(tmp_path / "tiny.gguf", "llama")
    writer.add_block_count(2)
    writer.add_context_length(64)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(inside)
    writer.add_head_count(4)
    writer.add_head_count_kv(4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(words))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(words)
    writer.add_token_types([1] * len(words))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(62)
    writer.add_eos_token_id(63)
    random = np.random.default_rng(0)

    def add(name, *shape):
        values = random.standard_normal(shape).astype(np.float32)
        kind = gguf.GGMLQuantizationType.Q8_0
        if len(shape) > 1:
            writer.add_tensor(name, gguf.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, values)

    add("token_embd.weight", len(words), width)
    add("output.weight", len(words), width)
    add("output_norm.weight", width)
    for block in range(2):
        for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
            add(f"blk.{block}.{part}.weight", width, width)
        add(f"blk.{block}.ffn_gate.weight", inside, width)
        add(f"blk.{block}.ffn_up.weight", inside, width)
        add(f"blk.{block}.ffn_down.weight", width, inside)
        add(f"blk.{block}.attn_norm.weight", width)
        add(f"blk.{block}.ffn_norm.weight", width)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    if by_directory:
        model, _ = load_model(str(tmp_path), device="cpu", gguf_file="tiny.gguf")
    else:
        model, _ = load_model(str(tmp_path / "tiny.gguf"), device="cpu")
    assert model.config.gguf["tensors"] == {"Q8_0": 16, "F32": 5}
    assert model.config.gguf["parameters"] == sum(parameter.numel() for parameter in model.parameters())
