import pytest

from groupsae.errors import HookpointError
from groupsae.hookpoints import expand, from_transformer_lens, layer_index, to_transformer_lens

NAMES = [f"layers.{layer}{inside}" for layer in range(12) for inside in ("", ".mlp", ".attention", ".mlp.dense")]


def test_a_wildcard_selects_within_one_part_of_a_path_only():
    assert expand(["layers.*"], NAMES) == tuple(f"layers.{layer}" for layer in range(12))
    assert expand(["layers.*.mlp"], NAMES) == tuple(f"layers.{layer}.mlp" for layer in range(12))


def test_layer_ten_stands_after_layer_nine():
    assert expand(["layers.1?", "layers.9"], NAMES) == ("layers.9", "layers.10", "layers.11")


def test_patterns_that_overlap_select_a_hookpoint_once():
    assert expand(["layers.[01]", "layers.0", "layers.1"], NAMES) == ("layers.0", "layers.1")


def test_a_pattern_that_matches_nothing_names_the_nearest_and_the_span():
    with pytest.raises(HookpointError) as caught:
        expand(["layers.0", "layer.3"], NAMES, owner="GPTNeoXForCausalLM")
    assert str(caught.value) == (
        "'layer.3' matches nothing in GPTNeoXForCausalLM. Did you mean 'layers.3'? It has layers.0 ... layers.11."
    )


def test_a_pattern_without_anything_near_still_says_what_there_is():
    with pytest.raises(HookpointError, match=r"matches nothing in the model\. It has layers\.0 \.\.\. layers\.11\."):
        expand(["zzz"], NAMES)


def test_every_pattern_must_match_even_if_another_does():
    with pytest.raises(HookpointError, match="'nothing'"):
        expand(["layers.*", "nothing"], NAMES)


@pytest.mark.parametrize(("hookpoint", "layer"), [("layers.3", 3), ("h.11.mlp", 11), ("model.layers.0.mlp.fc1", 0)])
def test_the_layer_is_the_first_number_of_the_path(hookpoint, layer):
    assert layer_index(hookpoint) == layer


def test_a_path_without_a_number_has_no_layer():
    with pytest.raises(HookpointError, match="'embed_in' holds no layer number"):
        layer_index("embed_in")


@pytest.mark.parametrize(
    ("hookpoint", "model_type", "name"),
    [
        ("layers.3", None, "blocks.3.hook_resid_post"),
        ("h.0", "bloom", "blocks.0.hook_resid_post"),
        ("decoder.layers.3", "opt", "blocks.3.hook_resid_post"),
        ("language_model.layers.3", "gemma3_text", "blocks.3.hook_resid_post"),
        ("model.model.layers.3", "llama", "blocks.3.hook_resid_post"),
        ("h.7.attn", "gpt2", "blocks.7.hook_attn_out"),
        ("layers.7.attention", "gpt_neox", "blocks.7.hook_attn_out"),
        ("layers.7.self_attn", "llama", "blocks.7.hook_attn_out"),
        ("layers.12.mlp", "qwen2", "blocks.12.hook_mlp_out"),
        ("layers.12.post_feedforward_layernorm", "gemma2", "blocks.12.hook_mlp_out"),
        ("layers.12.post_attention_layernorm", "olmo2", "blocks.12.hook_attn_out"),
    ],
)
def test_transformer_lens_names_the_same_tensor(hookpoint, model_type, name):
    assert to_transformer_lens(hookpoint, model_type) == name
    blocks = hookpoint.split(f".{layer_index(hookpoint)}")[0]
    assert from_transformer_lens(name, blocks, model_type) == hookpoint


@pytest.mark.parametrize(
    ("hookpoint", "model_type", "fault"),
    [
        ("layers.3.mlp.dense", "gpt_neox", r"'layers.3.mlp.dense' of a 'gpt_neox' model has no TransformerLens name"),
        ("layers.3.mlp", "gemma2", "known are: a block, post_feedforward_layernorm, post_attention_layernorm"),
        ("layers.3.self_attn", "granite", "known are: a block"),
        ("h.3.mlp", "bloom", "known are: a block"),
        ("layers.3.mlp", None, "of an unknown architecture"),
        ("layers.3.mlp.experts.2", "mixtral", "has no TransformerLens name"),
        ("embed_in", "gpt_neox", "has no TransformerLens name"),
        ("layers.3", "cohere", "another residual stream"),
    ],
)
def test_a_place_that_transformer_lens_does_not_name_or_names_otherwise_is_an_error(hookpoint, model_type, fault):
    with pytest.raises(HookpointError, match=fault):
        to_transformer_lens(hookpoint, model_type)


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("blocks.3.attn.hook_z", r"is the output of no module of a 'gpt2' model.*hook_mlp_out"),
        ("blocks.0.hook_resid_pre", "is the output of no module"),
        ("hook_embed", "is no TransformerLens name of a place in a block"),
    ],
)
def test_a_transformer_lens_name_of_no_module_s_output_is_an_error(name, fault):
    with pytest.raises(HookpointError, match=fault):
        from_transformer_lens(name, "h", "gpt2")


def test_the_input_of_a_block_is_the_output_of_the_one_before():
    assert from_transformer_lens("blocks.4.hook_resid_pre", "layers") == "layers.3"
