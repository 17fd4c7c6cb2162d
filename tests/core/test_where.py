"""What the default takes, what leaves are called, and which axis is the output: names, shapes and
neighbours."""

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import jaxprune as jp
from jaxprune.core.leaves.layout import axes_of
from jaxprune.core.leaves.names import Place, Surroundings, is_norm, why_no_weight
from jaxprune.core.leaves.paths import flatten_with_path, leaf_path
from jaxprune.core.where import leaf_slots

KEY = jax.random.key(0)


def places(shapes):
    """A tree of shapes as places, by path."""
    return {
        place.path: place
        for place in Surroundings(list(shapes), [jnp.zeros(s) for s in shapes.values()]).places()
    }


def taken(shapes):
    return {path for path, place in places(shapes).items() if not why_no_weight(place)}


def outputs(shapes, layout=None):
    return {
        path: axes_of(p, layout).outputs
        for path, p in places(shapes).items()
        if not why_no_weight(p)
    }


class Attention(eqx.Module):
    query: jax.Array
    value: jax.Array


class Net(eqx.Module):
    attn: Attention
    embed: eqx.nn.Embedding


def test_only_an_nnx_variable_loses_its_value():
    net = Net(Attention(jnp.ones((4, 4)), jnp.ones((4, 4))), eqx.nn.Embedding(5, 4, key=KEY))
    tree = {
        "net": net,
        "linear": nnx.state(nnx.Linear(2, 3, rngs=nnx.Rngs(0))),
        "module": nnx.Linear(2, 3, use_bias=False, rngs=nnx.Rngs(0)),
        "plain": {"value": jnp.ones(2)},
        "root": nnx.Param(jnp.ones(2)),
    }
    paths = [leaf_path(keys) for keys, _ in flatten_with_path(tree)[0]]
    assert paths == [
        "linear/bias",
        "linear/kernel",
        "module/kernel",
        "net/attn/query",
        "net/attn/value",
        "net/embed/weight",
        "plain/value",
        "root",
    ]
    masked = jp.prune(0.5, where=jp.where.path("net/attn/value")).init(tree)["net"]
    assert isinstance(masked.attn.value, jp.Masked) and not isinstance(masked.attn.query, jp.Masked)
    assert {slot.path: slot.owner for slot in leaf_slots(net)[0]} == {
        "attn/query": "Attention",
        "attn/value": "Attention",
        "embed/weight": "Embedding",
    }


NORMS = (
    "ln_1 ln_f LayerNorm_0 BatchNorm_0 bn2 bn final_layernorm key_ln norm1 attention_norm "
    "batchnorm_0 norm_out ln_pre"
)


@pytest.mark.parametrize("name", NORMS.split())
def test_norms_are_known_by_their_names(name):
    assert is_norm(name) and not taken({f"layers/{name}/weight": (12, 64)})


@pytest.mark.parametrize(
    "name", ["norm_proj", "in", "fc_in", "linear", "attn", "bottleneck", "design", "inner"]
)
def test_what_only_resembles_a_norm_is_none(name):
    assert not is_norm(name) and taken({f"layers/{name}/kernel": (12, 64)})


SKIPPED = {
    "gemma": {"embedder/input_embedding": (50, 8)},
    "vit": {"pos_embedding": (1, 5, 8), "register_tokens": (1, 4, 8)},
    "gpt2": {"wte/embedding": (50, 8), "wpe/embedding": (9, 8)},
    "llama": {"model.embed_tokens.weight": (50, 8), "transformer.wte.weight": (50, 8)},
    "bert": {
        "bert.embeddings.word_embeddings.weight": (50, 8),
        "bert.embeddings.position_embeddings.weight": (9, 8),
    },
    "t5": {"shared.weight": (50, 8), "relative_attention_bias/embedding": (32, 8)},
    "swin": {"attn.relative_position_bias_table": (49, 3)},
    "statistics": {
        "batch_stats/bn/mean": (3, 8),
        "bn/~/var_ema/hidden": (1, 8, 8),
        "bn/~/var_ema/average": (1, 8, 8),
    },
    "a stack of norms": {
        "layers/norm/weight": (3, 8),
        "layers/attn_norm/scale": (3, 8),
        "layers/norm/offset": (3, 8),
    },
    "a cache": {"cache/attn/cached_key": (2, 8, 4, 8)},
    "one long axis": {"cls": (1, 1, 8), "layer_scale": (8, 1, 1)},
}


@pytest.mark.parametrize("name", SKIPPED)
def test_what_is_no_kernel_is_left_alone(name):
    assert taken(SKIPPED[name]) == set()


TAKEN = {
    "LoRA": {"a": (8, 2), "b": (2, 8)},
    "LoRA beside its weight": {"q/kernel": (8, 8), "q/lora_a": (8, 2), "q/lora_b": (2, 8)},
    "LoRA in one dict": {"w": (8, 8), "a": (8, 2), "b": (2, 8)},
    "matrices with one letter": {"w": (4, 8, 8), "q": (8, 8), "k": (8, 8)},
    "stacked LoRA": {"a": (4, 8, 8), "b": (4, 8, 8)},
    "patches": {"patch_embed.proj.weight": (8, 3, 4, 4), "patch_embedding/kernel": (4, 4, 3, 8)},
    "Google's ViT": {"embedding/kernel": (4, 4, 3, 8)},
    "a linear layer called embed": {"embed/w": (8, 8)},
    "a head with one output": {"head/kernel": (8, 1)},
    "a hidden layer": {"hidden": (8, 8)},
    "the statistics of a VAE": {"mean/kernel": (8, 4), "fc_var.weight": (4, 8)},
    "adaptive norms": {"adaLN_modulation.1.weight": (48, 8), "norm1.linear.weight": (16, 8)},
}


@pytest.mark.parametrize("name", TAKEN)
def test_a_matrix_is_taken_whatever_its_name(name):
    assert taken(TAKEN[name]) == set(TAKEN[name])


BIASES = {
    "a stack of layers": ({"l/kernel": (3, 6, 4)}, {"l/bias": (3, 4)}),
    "Haiku's, stacked": ({"l/w": (3, 6, 4)}, {"l/b": (3, 4)}),
    "Haiku's GRU, stacked": ({"gru/w_i": (3, 6, 12), "gru/w_h": (3, 4, 12)}, {"gru/b": (3, 12)}),
    "heads": ({"q/kernel": (8, 2, 4)}, {"q/b": (2, 4)}),
    "channels of a window": ({"weight": (4, 3, 5, 5)}, {"add": (4, 1, 1)}),
    "stacked channels": ({"weight": (2, 4, 3, 5, 5)}, {"b": (2, 4, 1, 1)}),
    "a layer that calls its bias otherwise": ({"l/kernel": (3, 6, 4)}, {"l/intercept": (3, 4)}),
    "a class with a bias for DETR": ({"class_embed.weight": (9, 8)}, {"class_embed.bias": (9,)}),
}


@pytest.mark.parametrize("name", BIASES)
def test_a_bias_is_known_by_the_kernel_beside_it(name):
    kernels, biases = BIASES[name]
    assert taken(kernels | biases) == set(kernels)


OUTPUTS = {
    "PyTorch": {
        "fc.weight": ((4, 8), (-2,)),
        "conv.weight": ((8, 4, 3, 3), (-4,)),
        "attn.in_proj_weight": ((24, 8), (-2,)),
        "rnn.weight_ih_l0": ((16, 8), (-2,)),
        "rnn.weight_hh_l0_reverse": ((16, 4), (-2,)),
        "parametrizations.weight.original1": ((4, 8), (-2,)),
    },
    "PyTorch, transposed": {
        "up.weight": ((8, 4, 2, 2), (-3,)),
        "up.bias": ((4,), None),
        "deconv1.weight": ((8, 8, 2, 2), (-3,)),
    },
    "GPT-2": {
        "h.0.attn.c_attn.weight": ((8, 24), (-1,)),
        "h.0.attn.c_attn.bias": ((24,), None),
        "h.0.attn.c_proj.weight": ((8, 8), (-1,)),
        "h.0.attn.c_proj.bias": ((8,), None),
        "h.0.mlp.c_fc.weight": ((8, 32), (-1,)),
        "h.0.mlp.c_fc.bias": ((32,), None),
        "lm_head.weight": ((50, 8), (-2,)),
    },
    "nanoGPT": {
        "h.0.attn.c_attn.weight": ((24, 8), (-2,)),
        "h.0.attn.c_proj.weight": ((8, 8), (-2,)),
        "h.0.mlp.c_fc.weight": ((32, 8), (-2,)),
    },
    "Haiku": {
        "conv2_d_transpose/w": ((3, 3, 8, 8), (-2,)),
        "up/w": ((3, 3, 6, 4), (-2,)),
        "up/b": ((6,), None),
        "linear/w": ((4, 8), (-1,)),
    },
    "Flax, transpose_kernel": {
        "ConvTranspose_0/kernel": ((3, 3, 6, 4), (-2,)),
        "ConvTranspose_0/bias": ((6,), None),
    },
    "heads": {
        "attn/query/kernel": ((64, 4, 16), (-2, -1)),
        "attn/out/kernel": ((4, 16, 64), (-1,)),
        "DenseGeneral_0/kernel": ((8, 4, 2, 3), (-2, -1)),
        "DenseGeneral_0/bias": ((2, 3), None),
    },
    "Gemma": {
        "attn/q_einsum/w": ((8, 64, 16), (-1,)),
        "attn/kv_einsum/w": ((2, 4, 64, 16), (-1,)),
        "attn/attn_vec_einsum/w": ((4, 16, 64), (-1,)),
        "mlp/gating_einsum": ((2, 64, 256), (-1,)),
    },
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_the_output_axis_is_told_by_names_and_biases(name):
    table = OUTPUTS[name]
    expected = {path: axes for path, (_, axes) in table.items() if axes is not None}
    assert outputs({path: shape for path, (shape, _) in table.items()}) == expected


def test_layout_overrides_the_names():
    shapes = {"l/weight": (8, 4), "l/kernel": (4, 8), "t/kernel": (3, 3, 8, 8)}
    assert outputs(shapes, "torch") == {"l/weight": (-2,), "l/kernel": (-2,), "t/kernel": (-4,)}
    assert outputs(shapes, "jax") == {"l/weight": (-1,), "l/kernel": (-1,), "t/kernel": (-1,)}
    assert outputs(shapes, {"t/.*": -2})["t/kernel"] == (-2,) and outputs(shapes, {"t/.*": -2})[
        "l/weight"
    ] == (-2,)
    with pytest.raises(ValueError, match="choose one of 'jax'"):
        outputs(shapes, "keras")
    with pytest.raises(ValueError, match="l/weight has 2 axes"):
        outputs(shapes, {"l/weight": 2})


def scales(shapes):
    return {path: axes_of(p).scales for path, p in places(shapes).items() if not why_no_weight(p)}


def test_stacked_layers_are_told_by_what_is_stacked_with_them():
    llama = {
        "layers/norm/scale": (4, 64),
        "layers/q_proj/kernel": (4, 64, 64),
        "layers/mlp/up/kernel": (4, 64, 256),
    }
    assert scales(llama | {"lm_head/kernel": (64, 50)}) == {
        "layers/q_proj/kernel": (-3, -1),
        "layers/mlp/up/kernel": (-3, -1),
        "lm_head/kernel": (-1,),
    }
    maxtext = {
        "decoder/layers/norm/scale": (64, 4),
        "decoder/layers/self_attention/query/kernel": (64, 4, 2, 32),
        "decoder/layers/self_attention/out/kernel": (2, 4, 32, 64),
        "decoder/layers/mlp/wi/kernel": (64, 4, 256),
    }
    assert scales(maxtext) == {
        "decoder/layers/self_attention/query/kernel": (-3, -2, -1),
        "decoder/layers/self_attention/out/kernel": (-3, -1),
        "decoder/layers/mlp/wi/kernel": (-2, -1),
    }
    assert scales({"b/Dense_0/kernel": (4, 4, 8), "b/Dense_0/bias": (4, 8)}) == {
        "b/Dense_0/kernel": (-3, -1)
    }
    assert scales({"q/kernel": (4, 4, 8), "q/bias": (4, 8)}) == {"q/kernel": (-2, -1)}
    assert scales({"stack/conv/kernel": (5, 3, 3, 4, 8), "stack/conv/bias": (5, 8)}) == {
        "stack/conv/kernel": (-5, -1)
    }


def test_layers_stacked_on_the_second_axis_are_told_by_their_biases():
    assert scales({"q/kernel": (6, 3, 5), "q/bias": (5, 3)}) == {"q/kernel": (-2, -1)}
    assert scales({"c/kernel": (3, 4, 3, 6, 5), "c/bias": (5, 4)}) == {"c/kernel": (-4, -1)}


def test_scales_are_finer_where_nothing_tells_layers_from_a_window():
    assert scales({"kernel": (4, 8, 8)}) == {"kernel": (-3, -1)}
    assert scales({"Conv_0/kernel": (3, 8, 8), "c/kernel": (3, 8, 8), "c/bias": (8,)}) == {
        "Conv_0/kernel": (-1,),
        "c/kernel": (-1,),
    }
    assert scales({"kernel": (3, 3, 8, 8)}) == {"kernel": (-1,)}
    assert scales({"kernel": (6, 3, 3, 8, 8)}) == {"kernel": (-5, -1)}
    assert scales({"moe/wi": (4, 8, 64, 256)}) == {"moe/wi": (-4, -3, -1)}


def test_the_place_alone_is_enough():
    assert (
        axes_of(Place("a/weight", (3, 4))).units == (-2,)
        and axes_of(Place("bias", (3,))).outputs == ()
    )
    assert str(axes_of(Place("", (3, 4)))) == "outputs on axis -1"


def test_scales_and_runs_lie_along_the_outputs_and_inputs_of_each_framework():
    first = eqx.nn.Linear(16, 8, key=KEY)
    tall = jp.quantize(bits=4).init(first).weight
    assert tall.scale.shape == (8, 1)
    assert jp.quantize(bits=4, layout="jax").init(first).weight.scale.shape == (1, 16)
    assert jp.quantize(bits=4, axis=-1).init(first).weight.scale.shape == (1, 16)
    assert jp.quantize(bits=4).init({"kernel": jnp.ones((16, 8))})["kernel"].scale.shape == (1, 8)
    assert jp.quantize(bits=4).init({"kernel": jnp.ones((3, 16, 8))})["kernel"].scale.shape == (
        3,
        1,
        8,
    )
    runs = jp.prune(pattern=jp.patterns.n_m(2, 4)).init(first).weight.mask
    assert bool((runs.reshape(8, 4, 4).sum(-1) == 2).all())


def test_prototypes_are_of_the_outputs_in_every_order_of_axes():
    w = jax.random.normal(KEY, (16, 8))
    last = jp.share(k=3).init({"kernel": w})["kernel"]
    first = jp.share(k=3).init({"weight": w.T})["weight"]
    assert jnp.allclose(
        jp.materialize(first), jp.materialize(last).T
    ) and first.prototypes.shape == (3, 16)
    assert jp.share(k=3, layout="jax").init({"weight": w})["weight"].prototypes.shape == (16, 3)


def test_files_of_pytorch_turn_every_name_of_its_weights():
    from jaxprune.storage.checkpoints import layouts

    names = {"weight", "attn.in_proj_weight", "rnn.weight_ih_l0", "rnn.weight_hh_l0_reverse"}
    assert all(layouts.is_reordered("torch", (name,), (8, 4)) for name in names)
    assert not any(
        layouts.is_reordered("torch", (name,), (8, 4))
        for name in ("bias", "kernel", "weights_of_experts")
    )
