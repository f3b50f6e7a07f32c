import pytest

from groupsae.errors import HookpointError
from groupsae.hookpoints import expand, layer_index, to_transformer_lens

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
    ("hookpoint", "name"),
    [
        ("layers.3", "blocks.3.hook_resid_post"),
        ("h.0", "blocks.0.hook_resid_post"),
        ("h.7.attn", "blocks.7.hook_attn_out"),
        ("layers.7.attention", "blocks.7.hook_attn_out"),
        ("layers.7.self_attn", "blocks.7.hook_attn_out"),
        ("layers.12.mlp", "blocks.12.hook_mlp_out"),
    ],
)
def test_transformer_lens_names(hookpoint, name):
    assert to_transformer_lens(hookpoint) == name


def test_a_place_that_transformer_lens_does_not_name_is_an_error():
    with pytest.raises(HookpointError, match=r"'layers.3.mlp.dense' has no TransformerLens name"):
        to_transformer_lens("layers.3.mlp.dense")
