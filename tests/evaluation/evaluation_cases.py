"""Tiny language models of four architectures, rows with special tokens, and SAEs to splice in."""

import numpy as np
import torch
import transformers

from groupsae.activations.harvest import Harvester
from groupsae.activations.positions import NO_OUTLIERS
from groupsae.config import TopKConfig
from groupsae.model_structure import base_model
from groupsae.partition import Partition
from groupsae.saes.scales import Scales
from groupsae.saes.suite import Suite
from groupsae.saes.topk import TopKSAE
from groupsae.text.tokens import TokenRows

D_MODEL, VOCABULARY, LENGTH = 16, 60, 12
COMMON = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 0}
BLOCKS = {"gpt_neox": "layers", "gpt2": "h", "llama": "layers", "gptj": "h"}


def make_model(kind="gpt_neox", seed=0):
    """A random model of three blocks, in eval mode."""
    gpt2_style = {"n_embd": D_MODEL, "n_layer": 3, "n_head": 2, "n_positions": 32, **COMMON}
    llama_style = {
        "hidden_size": D_MODEL,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 32,
        "initializer_range": 0.3,
        **COMMON,
    }
    configs = {
        "gpt_neox": lambda: transformers.GPTNeoXConfig(**llama_style),
        "llama": lambda: transformers.LlamaConfig(num_key_value_heads=2, **llama_style),
        "gpt2": lambda: transformers.GPT2Config(initializer_range=0.3, **gpt2_style),
        "gptj": lambda: transformers.GPTJConfig(initializer_range=0.3, rotary_dim=4, **gpt2_style),
    }
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(configs[kind]())
    return model.eval().requires_grad_(False)


def make_rows(num_rows=10, special=True, seed=0):
    """Rows of random ids; about one position in six holds the special token 0."""
    random = np.random.default_rng(seed)
    ids_RT = random.integers(1, VOCABULARY, (num_rows, LENGTH))
    if special:
        ids_RT[random.random(ids_RT.shape) < 1 / 6] = 0
    return TokenRows(ids_RT=ids_RT, special_ids=(0,))


@torch.no_grad()
def fluent_rows(model, num_rows=10):
    """Rows that the model itself predicts, so that it does well on them; some positions then hold the special token."""
    ids_RT = torch.arange(1, num_rows + 1)[:, None]
    for _ in range(LENGTH - 1):
        ids_RT = torch.cat([ids_RT, model(ids_RT).logits[:, -1:].argmax(-1)], dim=1)
    special_RT = make_rows(num_rows).ids_RT == 0
    return TokenRows(ids_RT=np.where(special_RT, 0, ids_RT.numpy()), special_ids=(0,))


def make_source(model=None, hookpoints=("layers.0", "layers.1"), *, rows=None, batch_rows=4, **options):
    """A reader that leaves out special tokens alone, unless `outliers` says otherwise."""
    rows = make_rows() if rows is None else rows
    return Harvester(
        model or make_model(), rows, hookpoints, batch_rows=batch_rows, **{"outliers": NO_OUTLIERS} | options
    )


def all_activations(source):
    """Every kept token of a source, (L, N, D), float64."""
    return source.read(list(range(source.num_rows))).double()


def random_suite(hookpoints=("layers.0", "layers.1"), groups=None, *, seed=0, d_model=D_MODEL, d_sae=24, k=4):
    """SAEs with random weights; each hookpoint with another scale and center."""
    partition = Partition(groups) if groups else Partition.singletons(hookpoints)
    saes = {}
    for index, name in enumerate(partition.names):
        saes[name] = TopKSAE(d_model, TopKConfig(d_sae=d_sae, k=k)).requires_grad_(False)
        saes[name].initialize(seed + index)
    random = torch.Generator().manual_seed(seed)
    count = len(partition.hookpoints)
    scales = Scales(partition.hookpoints, torch.linspace(1, 2, count), torch.randn(count, d_model, generator=random))
    return Suite(partition, saes, scales)


def identity_suite(hookpoints, d_model=D_MODEL):
    """SAEs that lose nothing: a latent for each direction and its opposite."""
    suite = random_suite(hookpoints, d_model=d_model, d_sae=2 * d_model, k=d_model)
    for sae in suite.saes.values():
        rows_SD = torch.cat([torch.eye(d_model), -torch.eye(d_model)])
        sae.W_enc.copy_(rows_SD)
        sae.W_dec.copy_(rows_SD)
    return suite


def mean_suite(source):
    """SAEs whose latents never fire and whose b_dec is the mean activation."""
    suite = random_suite(source.hookpoints, d_model=source.d_model)
    for index, sae in enumerate(suite.saes.values()):
        scale, center_D = suite.scales.of(source.hookpoints[index])
        sae.b_enc.fill_(-1e6)
        sae.b_dec.copy_((all_activations(source)[index].mean(0).float() - center_D) * scale)
    return suite


def spliced_forward(model, hookpoint, ids_BT, change):
    """The logits of a whole forward pass with a hook that changes the module's output."""

    def hook(module, inputs, output):
        if isinstance(output, tuple):
            return (change(output[0]), *output[1:])
        return change(output)

    handle = base_model(model).get_submodule(hookpoint).register_forward_hook(hook)
    try:
        return model(ids_BT, use_cache=False).logits
    finally:
        handle.remove()
