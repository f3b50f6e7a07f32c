import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from groupsae.config import (
    GROUP_METHODS,
    ActivationsConfig,
    GroupConfig,
    MatryoshkaConfig,
    PlanConfig,
    RunConfig,
    TextConfig,
    TopKConfig,
    TrainConfig,
    as_architecture,
    commented_toml,
    differing_keys,
    dump_config,
    load_config,
)
from groupsae.errors import ConfigError
from groupsae.grouping.choose import METHODS

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.toml"))
ODD = RunConfig(
    name="odd.name-1",
    seed=7,
    text=TextConfig(source=("a b.txt", 'quo"ted', "back\\slash", "new\nline", "hf:ünï/code"), field="the text"),
    activations=ActivationsConfig(hookpoints=("layers.*.mlp", "residual")),
    sae=TopKConfig(d_sae=77, k=5, auxk_weight=1e-20),
    train=TrainConfig(learning_rate=1e-3, center=False, num_tokens=10**12),
)


def load(folder: Path, text: str) -> RunConfig:
    file = folder / "run.toml"
    file.write_text(text)
    return load_config(file)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_config_that_ships_can_be_read(path):
    assert load_config(path).name == path.stem


def test_there_are_configs_to_test():
    assert CONFIGS


ARCHITECTURES = ["topk", "batchtopk", "matryoshka", "relu", "jumprelu", "gated"]
EVERY_SAE = [RunConfig(sae=as_architecture(ODD.sae, name)) for name in ARCHITECTURES]


@pytest.mark.parametrize("config", [RunConfig(), ODD, *EVERY_SAE], ids=["plain", "odd", *ARCHITECTURES])
@pytest.mark.parametrize("write", [dump_config, commented_toml])
def test_a_config_survives_being_written(config, write, tmp_path):
    assert load(tmp_path, write(config)) == config


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), st.floats(min_value=1e-300, max_value=1e300))
def test_any_text_and_any_number_survive_being_written(text, number):
    config = RunConfig(text=TextConfig(source=(text,)), train=TrainConfig(learning_rate=number))
    assert RunConfig(**tomllib.loads(dump_config(config))) == config
    assert RunConfig(**tomllib.loads(commented_toml(config))) == config


@pytest.mark.parametrize("config", EVERY_SAE, ids=ARCHITECTURES)
def test_a_commented_config_names_every_key_and_says_what_it_means(config):
    text = commented_toml(config)
    for section, value in config:
        for key, inner in getattr(type(value), "model_fields", {}).items():
            written = f"\n{key} = " in text or f"\n# {key} = ..." in text or f"\n[{section}.{key}]" in text
            assert written, f"{section}.{key}"
            assert inner.description and inner.description.splitlines()[0] in text, (
                f"{section}.{key} has no description"
            )


def test_a_config_is_named_after_its_file(tmp_path):
    assert load(tmp_path, "").name == "run"
    assert load(tmp_path, 'name = "other"').name == "other"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sede = 1", r"unknown key 'sede'. Did you mean 'seed'\?"),
        ("[train]\nnum_token = 5", r"in \[train\]: unknown key 'num_token'. Did you mean 'num_tokens'\?"),
        ("[sae]\nzzz = 5", r"in \[sae\]: unknown key 'zzz'. Known are architecture, expansion, d_sae, k"),
        ("[trian]\nnum_tokens = 5", r"unknown key 'trian'. Did you mean 'train'\?"),
        ("[train]\nnum_tokens = -5", r"in \[train\]: num_tokens: .*greater than 0, given -5"),
        ("[train]\nnum_tokens = 0", "num_tokens: .*greater than 0"),
        ("[train]\nnum_tokens = 1.5", "num_tokens: .*valid integer, given 1.5"),
        ('[train]\nnum_tokens = "many"', "num_tokens: .*valid integer, given 'many'"),
        ('[train]\nnum_tokens = "5"', "num_tokens: .*valid integer, given '5'"),
        ("[sae]\nk = true", "k: .*valid integer, given True"),
        ("[train]\ncenter = 1", "center: .*valid boolean, given 1"),
        ("[train]\nlearning_rate = nan", "learning_rate: "),
        ("[train]\nlearning_rate = true", "learning_rate: .*valid number"),
        ("[sae]\nauxk_weight = inf", "auxk_weight: "),
        ("[text]\nsource = [1]", "source.0: .*valid string, given 1"),
        ("[text]\nheld_out_share = 1.0", "held_out_share: .*less than 1"),
        ("[text]\ncontext_length = 1", "context_length: .*greater than 1"),
        ('[model]\ndtype = "float8"', "dtype: .*'float32', 'bfloat16' or 'float16', given 'float8'"),
        ("train = 5", "train: .*, given 5"),
        ('name = "a/b"', "name: .*given 'a/b'"),
        ('name = ".."', "name: "),
        ("seed = -1", "seed: "),
        ('[group]\nmethod = "complte"', "There is no method 'complte'. Did you mean 'complete'"),
        ("[sae]\nk = 9\nd_sae = 8", "sae.k = 9 is more than the 8 latents"),
        (
            '[sae]\narchitecture = "jumpreru"',
            "in .sae.: There is no architecture 'jumpreru'. Did you mean 'jumprelu'",
        ),
        (
            "[sae]\narchitecture = 3",
            "no architecture '3'. Known are topk, batchtopk, matryoshka, relu, jumprelu",
        ),
        (
            "[sae]\nprefixes = [0.5, 1]",
            r"in \[sae\]: unknown key 'prefixes' for architecture 'topk'; it is a key of matryoshka",
        ),
        ('[sae]\narchitecture = "relu"\nauxk_weight = 1.0', "in .sae.: unknown key 'auxk_weight'"),
        ('[sae]\narchitecture = "relu"\nsparsity_coeficient = 1', "Did you mean 'sparsity_coefficient'"),
        ('[sae]\narchitecture = "relu"\nsparsity_coefficient = 0', "sparsity_coefficient: .*greater than 0, given 0"),
        ('[sae]\narchitecture = "jumprelu"\nbandwidth = -1', "bandwidth: .*greater than 0, given -1"),
        ('[sae]\narchitecture = "matryoshka"\nprefixes = [0.5, 0.2, 1]', "prefixes .* must grow and end with 1"),
        ('[sae]\narchitecture = "matryoshka"\nprefixes = [0.5]', "prefixes .* must grow and end with 1"),
        ('[sae]\narchitecture = "matryoshka"\nprefixes = []', "prefixes .* must grow and end with 1"),
        ('[sae]\narchitecture = "gated"\nd_sae = 4\nk = 5', "sae.k = 5 is more than the 4 latents"),
        ("[train]\nbatch_tokens = 512\n[activations]\nbuffer_tokens = 256", "holds less than one batch"),
    ],
)
def test_a_fault_is_named_with_file_section_and_key(tmp_path, text, message):
    with pytest.raises(ConfigError, match=r"run\.toml: .*" + message) as caught:
        load(tmp_path, text)
    assert "\n" not in str(caught.value)


def test_every_fault_is_named_at_once():
    with pytest.raises(ConfigError, match=r"batch_tokens: .*; .*unknown key 'clip'"):
        TrainConfig(batch_tokens=0, clip=1)


def test_a_whole_number_may_be_written_with_an_exponent(tmp_path):
    assert load(tmp_path, "[train]\nnum_tokens = 1e6").train.num_tokens == 1_000_000


def test_one_name_stands_for_a_list_of_one():
    assert TextConfig(source="corpus").source == ("corpus",)


def test_a_config_cannot_be_changed():
    with pytest.raises(Exception, match="frozen"):
        RunConfig().seed = 3


@pytest.mark.parametrize("text", ["[train", "[train]\n[train]\n", "a = ", "\ufeff\ufeff"])
def test_a_file_that_is_not_toml_is_an_error(tmp_path, text):
    with pytest.raises(ConfigError, match=r"run\.toml"):
        load(tmp_path, text)


def test_a_file_that_is_not_text_is_an_error(tmp_path):
    (tmp_path / "run.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"run\.toml cannot be read as TOML"):
        load_config(tmp_path / "run.toml")


def test_a_missing_file_is_an_error_that_says_how_to_make_one(tmp_path):
    with pytest.raises(ConfigError, match=r"There is no config file .*none\.toml\. `groupsae init`"):
        load_config(tmp_path / "none.toml")


def test_more_latents_kept_than_there_are_is_an_error_once_the_width_is_known():
    assert TopKConfig(k=128, expansion=8).width(16) == 128
    with pytest.raises(ConfigError, match=r"sae\.k = 129 is more than the 128 latents there are"):
        TopKConfig(k=129, expansion=8).width(16)


def test_the_methods_of_grouping_are_those_that_there_are():
    assert set(GROUP_METHODS) == set(METHODS)
    assert {GroupConfig(method=method).method for method in METHODS} == set(METHODS)
    assert GroupConfig(method="mine.toml").method == "mine.toml"


def test_two_rules_for_one_choice_are_an_error():
    with pytest.raises(ConfigError, match="budget_flops and max_fvu_increase are both set"):
        PlanConfig(budget_flops=1.0, max_fvu_increase=0.1)


def test_differing_keys_are_named_with_both_values():
    other = ODD.model_copy(update={"seed": 8, "train": TrainConfig(learning_rate=1e-3, num_tokens=10**12)})
    assert differing_keys(ODD, other) == ["seed: 7 -> 8", "train.center: False -> True"]
    assert differing_keys(ODD, ODD) == []


def test_sections_of_different_architectures_differ_in_their_keys():
    other = ODD.model_copy(update={"sae": as_architecture(ODD.sae, "matryoshka")})
    assert differing_keys(ODD, other) == ["sae.architecture: 'topk' -> 'matryoshka'"]


def test_another_architecture_keeps_what_both_have():
    matryoshka = MatryoshkaConfig(d_sae=50, k=6, prefixes=(0.5, 1.0), auxk_weight=0.5)
    relu = as_architecture(matryoshka, "relu")
    assert (relu.architecture, relu.d_sae, relu.k) == ("relu", 50, 6)
    assert as_architecture(relu, "matryoshka").prefixes == MatryoshkaConfig().prefixes
    assert as_architecture(matryoshka, "matryoshka") is matryoshka
    with pytest.raises(ConfigError, match="Did you mean 'gated'"):
        as_architecture(relu, "gatd")


def test_an_encoder_is_not_fitted_where_that_spoils_the_thresholds():
    with pytest.raises(ConfigError, match=r"rescale_encoder_init.*jumprelu"):
        RunConfig(train={"rescale_encoder_init": True}, sae={"architecture": "jumprelu"})
    assert RunConfig(train={"rescale_encoder_init": True}, sae={"architecture": "batchtopk"}).train.rescale_encoder_init


@pytest.mark.parametrize(("warmup", "decay"), [(0.3, 0.8), (1.0, 0.2)])
def test_a_warmup_that_overlaps_the_decay_is_an_error(warmup, decay):
    with pytest.raises(ConfigError, match=rf"warmup_share = {warmup} and decay_share = {decay} overlap.*lower one"):
        TrainConfig(warmup_share=warmup, decay_share=decay)


def test_a_warmup_may_end_where_the_decay_begins():
    assert TrainConfig(warmup_share=0.25, decay_share=0.75).warmup_share == 0.25
