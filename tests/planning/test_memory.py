import re
from dataclasses import replace

import pytest

from groupsae.config import PerLayer
from groupsae.errors import FitError
from groupsae.planning.architecture import Architecture, Block
from groupsae.planning.memory import (
    DENSE_TENSORS,
    TILE_BYTES,
    TILE_BYTES_ON_DEVICE,
    Available,
    Footprint,
    predict_memory,
    require_fits,
)
from groupsae.planning.pricing import Pricing
from groupsae.saes.kernels.gather import TILE_NUMBERS

BLOCK = Block(7_087_872, 24 * 768**2, 4 * 768)
MODEL = Architecture((BLOCK,) * 12, 768, 3072, 50304, 162_322_944)
RUN = Footprint(
    architecture=MODEL,
    num_hookpoints=11,
    num_saes=6,
    d_sae=12288,
    batch_tokens=4096,
    batch_rows=16,
    context_length=1024,
    buffer_tokens=65536,
    bytes_per_number=2,
)
GIB = 2**30


def test_an_sae_has_two_matrices_and_two_biases_in_float32():
    assert RUN.sae_bytes == 4 * (2 * 768 * 12288 + 12288 + 768)


def test_what_an_architecture_adds_is_counted():
    more = replace(RUN, vectors=3)
    assert more.sae_bytes - RUN.sae_bytes == 4 * 2 * 12288
    dense = predict_memory(replace(RUN, dense_start=True))
    assert dense.pre_activations == DENSE_TENSORS * 4096 * 12288 * 4
    assert dense.device > predict_memory(RUN).device


def test_the_parts_follow_from_the_settings():
    memory = predict_memory(RUN)
    assert memory.lm_weights == 2 * MODEL.parameters
    assert memory.buffer == 65536 * 11 * (768 * 2 + 16)
    assert memory.batch == 4096 * 768 * (2 + 16) and predict_memory(replace(RUN, k=32)).batch > memory.batch
    assert predict_memory(replace(RUN, stored_tokens=1000)).host - memory.host == 2000
    assert memory.sae_weights == 6 * RUN.sae_bytes
    assert memory.adam_moments == 12 * RUN.sae_bytes
    assert memory.gradients == RUN.sae_bytes
    assert memory.pre_activations == 4096 * 12288 * 4 < TILE_BYTES_ON_DEVICE


def test_a_tile_of_pre_activations_is_what_the_encoder_holds():
    assert {key: 4 * n for key, n in TILE_NUMBERS.items()} == {"cpu": TILE_BYTES, "cuda": TILE_BYTES_ON_DEVICE}
    many = replace(RUN, batch_tokens=2**17)
    assert predict_memory(many).pre_activations == TILE_BYTES_ON_DEVICE
    assert predict_memory(replace(RUN, on_device=False)).pre_activations == TILE_BYTES


def test_the_whole_is_between_what_stays_and_the_sum_of_the_parts():
    memory = predict_memory(RUN)
    stays = memory.lm_weights + memory.sae_weights + memory.adam_moments
    everything = stays + memory.lm_activations + memory.buffer + memory.batch + memory.gradients
    assert stays < memory.device < everything + memory.pre_activations


@pytest.mark.parametrize("setting", ["num_saes", "d_sae", "batch_tokens", "batch_rows", "buffer_tokens"])
def test_more_of_anything_never_needs_less(setting):
    larger = predict_memory(replace(RUN, **{setting: 2 * getattr(RUN, setting)}))
    assert larger.device >= predict_memory(RUN).device


def test_without_an_accelerator_everything_lies_on_the_host():
    run = replace(RUN, batch_tokens=256)  # which either kind takes in one tile
    memory = predict_memory(replace(run, on_device=False))
    assert memory.device == 0
    one_after_the_other = min(memory.lm_activations, memory.batch + memory.gradients + memory.pre_activations)
    assert memory.host == memory.process + predict_memory(run).device + one_after_the_other


def test_disk_holds_the_checkpoints_and_one_more_the_saes_and_the_tokens():
    memory = predict_memory(replace(RUN, stored_tokens=1000))
    assert memory.disk == (3 * 3 + 1) * 6 * RUN.sae_bytes + 2 * 1000


def test_biases_of_layers_are_learned_like_weights():
    without, with_them = predict_memory(RUN), predict_memory(replace(RUN, biases=11))
    biases = 11 * 12288 * 4
    assert with_them.sae_weights - without.sae_weights == biases
    assert with_them.adam_moments - without.adam_moments == 2 * biases
    assert with_them.disk - without.disk == 10 * biases


def test_only_layers_that_share_an_sae_have_biases():
    pricing = Pricing(RUN, 128, 1000, 1000, per_layer=PerLayer(bias=True))
    groups = (("layers.0", "layers.1", "layers.2"), ("layers.3",))
    assert pricing.footprint_of(groups).biases == 3
    assert replace(pricing, per_layer=PerLayer()).footprint_of(groups).biases == 0


def test_a_run_that_fits_passes():
    assert require_fits(RUN, Available(device=80 * GIB, host=64 * GIB, disk=100 * GIB)) == predict_memory(RUN)


def test_what_is_not_known_is_not_checked():
    assert require_fits(RUN, Available()) == predict_memory(RUN)


def test_a_run_that_does_not_fit_is_refused_with_one_value_to_lower():
    needed = predict_memory(RUN).device
    with pytest.raises(FitError, match=r"needs .* GiB of device memory, .* are free") as refused:
        require_fits(RUN, Available(device=int(0.9 * needed)))
    assert "activations.buffer_tokens from 65,536 to 32,768" in str(refused.value)


@pytest.mark.parametrize("share", [0.9, 0.7, 0.5, 0.3])
def test_the_proposal_fits(share):
    available = Available(device=int(share * predict_memory(RUN).device))
    with pytest.raises(FitError) as refused:
        require_fits(RUN, available)
    require_fits(proposed(RUN, str(refused.value)), available)


def test_too_little_disk_is_answered_with_fewer_or_smaller_saes():
    with pytest.raises(FitError, match=r"disk space.*the number of groups from 6 to 3"):
        require_fits(RUN, Available(disk=predict_memory(RUN).disk // 2))


def test_a_machine_on_which_nothing_fits_is_told_so():
    with pytest.raises(FitError, match="smaller model or a larger machine"):
        require_fits(RUN, Available(device=predict_memory(RUN).lm_weights // 2))


def proposed(run, message):
    settings = {
        "activations.buffer_tokens": "buffer_tokens",
        "activations.batch_rows": "batch_rows",
        "train.batch_tokens": "batch_tokens",
        "the number of groups": "num_saes",
        "sae.d_sae": "d_sae",
    }
    for name, setting in settings.items():
        if found := re.search(rf"{re.escape(name)} from [\d,]+ to ([\d,]+)", message):
            run = replace(run, **{setting: int(found[1].rstrip(",").replace(",", ""))})
    return run
