"""Which axes of a weight are its outputs: one function for trees in memory, for files and for the
command line.

    outputs last     kernel, w, and any other name       I O      W I O      H W I O       Flax,
        Haiku, plain dicts
    outputs first    weight, in_proj_weight, weight_ih   O I      O I W      O I H W       PyTorch,
        Equinox

A bias beside the weight has the shape of the outputs, so it decides where names mislead: transposed
convolutions (H W O I in Haiku, I O H W in PyTorch), GPT-2's `Conv1D` (I O under the name `weight`),
attention with heads (I heads dim), layers stacked by a scan (L I O). Where nothing tells a stack of
dense layers from a convolution, the leading axes are `unsure`: a scale for each costs little and is
right for both.

Nothing here needs JAX.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxprune.core.leaves.names import PART_OF_KERNEL, Place, Shape, words_of
from jaxprune.core.words import choice, compiled

Layout = "str | Mapping[str, int | tuple[int, ...] | Axes] | None"
LAYOUTS = ("jax", "torch")
WINDOW = 11  # no convolution that is in use has a longer side


class Axes(NamedTuple):
    """What the axes of a weight are, each counted from the end.

    Attributes:
      outputs: together they number the units; (heads, dim) of an attention's queries.
      inputs: are summed over, the window of a convolution apart; N:M runs along the last of them.
      stacked: number weights that have nothing to do with one another: layers, experts.
      unsure: stacked, or the window of a convolution: nothing tells.
    """

    outputs: tuple[int, ...]
    inputs: tuple[int, ...]
    stacked: tuple[int, ...] = ()
    unsure: tuple[int, ...] = ()

    @property
    def units(self) -> tuple[int, ...]:
        """The axes that tell one unit from another: of which layer, and which output."""
        return tuple(sorted((*self.stacked, *self.outputs)))

    @property
    def scales(self) -> tuple[int, ...]:
        """The axes along which a scale is not shared: those of the units, and where nothing tells,
        the finer choice."""
        return tuple(sorted({*self.stacked, *self.unsure, *self.outputs}))

    @property
    def output(self) -> int:
        """The last of the outputs, for what takes a single axis."""
        return self.outputs[-1] if self.outputs else -1

    @property
    def contraction(self) -> int:
        """The last of the inputs, along which N:M runs."""
        return self.inputs[-1] if self.inputs else -1

    def __str__(self) -> str:
        words = [f"outputs on axis {_listed(self.outputs)}"]
        if self.stacked:
            words.append(f"stacked on {_listed(self.stacked)}")
        if self.unsure:
            words.append(f"a stack or a window on {_listed(self.unsure)}")
        return ", ".join(words)


def _listed(axes: tuple[int, ...]) -> str:
    return " and ".join(map(str, axes)) or "none"


def check_layout(layout: Any, call: str) -> None:
    """Refuses a layout that is neither None, a word of `LAYOUTS`, nor axes by path; `call` is whose
    argument it is."""
    if isinstance(layout, Mapping):
        for rule in layout:
            compiled("layout", rule)
    elif layout is not None:
        choice(f"{call}(layout={{}})", layout, LAYOUTS)


def axes_of(place: Place, layout: Any = None) -> Axes:
    """The axes of a weight, by its name, its shape, its module and its bias.

    Args:
      place: the leaf among its neighbours; with a path and a shape alone the name decides.
      layout: instead of that, "jax" (outputs last), "torch" (outputs first), or a dict of path
        regex -> output axis (or axes) for the leaves that it names.

    Raises:
      ValueError: for another layout, and for an axis that the leaf lacks.

    Example:
      >>> from jaxprune.core.leaves.names import Place
      >>> axes_of(Place("dense/kernel", (64, 8))).outputs, axes_of(Place("layer.weight",
      ...     (8, 64))).outputs
      ((-1,), (-2,))
      >>> print(axes_of(Place("layers/mlp/kernel", (4, 64, 8))))
      outputs on axis -1, a stack or a window on -3
    """
    rank = len(place.shape)
    check_layout(layout, "axes_of")
    if isinstance(layout, Mapping):
        given = layout.get(place.path)
        if given is None:
            given = next(
                (axes for rule, axes in layout.items() if re.fullmatch(rule, place.path)), None
            )
        if given is not None:
            return given if isinstance(given, Axes) else _given(place, given)
    if rank < 2:
        return Axes((), (-1,) * rank)
    stack = None if place.tree is None or rank < 3 else place.tree.stacked_axis(place.path)
    core = [axis for axis in range(-rank, 0) if axis + rank != stack]
    shape = tuple(place.shape[axis] for axis in core)
    bias = _bias(place, stack)
    first = layout == "torch" or (layout != "jax" and outputs_first(place))
    found = (_first if first else _last)(place, shape, bias, stack is not None)
    axes = Axes(*(tuple(core[axis] for axis in role) for role in found))
    return (
        axes
        if stack is None
        else axes._replace(stacked=tuple(sorted((stack - rank, *axes.stacked))))
    )


def _given(place: Place, axes: int | tuple[int, ...]) -> Axes:
    """The axes that the user names as outputs; the others are inputs, the last one next to the
    window."""
    rank = len(place.shape)
    outputs = (axes,) if isinstance(axes, int) else tuple(axes)
    if any(not -rank <= axis < rank for axis in outputs):
        raise ValueError(f"layout: {place.path} has {rank} axes, and no axis {outputs}")
    outputs = tuple(sorted(axis % rank - rank for axis in outputs))
    others = [axis for axis in range(-rank, 0) if axis not in outputs]
    first = outputs == (-rank,)
    return Axes(outputs, tuple(others[:1] if first else others[-1:]))


# --- names ---


def outputs_first(place: Place) -> bool:
    """Whether a weight's name is one of PyTorch's and Equinox's, which have the outputs first."""
    names = place.names
    if names[-1:] and re.fullmatch(r"original\d*", names[-1]):
        names = names[:-1]  # a parametrization of PyTorch's: parametrizations.weight.original0
    return bool(names) and re.fullmatch(r"(.*_)?weight(_.*)?", names[-1]) is not None


QUERIES = {"query", "key", "value", "q", "k", "v", "qkv", "kv", "queries", "keys", "values"}
MERGES = {"out", "o", "output", "post", "vec"}
DENSE = {
    "dense",
    "linear",
    "fc",
    "mlp",
    "wi",
    "wo",
    "up",
    "down",
    "gate",
    "lin",
    "proj",
    "projection",
}


def _is_conv(place: Place) -> bool:
    return any(
        word.startswith("conv") for name in (place.module, place.owner) for word in words_of(name)
    )


def _is_transposed(place: Place) -> bool:
    text = (place.module + place.owner).lower()
    return "transpose" in text or "deconv" in text or "upconv" in text or "up_conv" in text


def _splits_heads(place: Place) -> bool:
    words = words_of(place.module)
    return bool(words) and words[0] in QUERIES and "einsum" not in words


def _merges_heads(place: Place) -> bool:
    words = words_of(place.module)
    return "vec" in words or (bool(words) and words[0] in MERGES and "einsum" not in words)


# --- shapes ---

Roles = tuple[
    tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...]
]  # outputs, inputs, stacked, unsure


def _bias(place: Place, stack: int | None) -> Shape:
    """The shape of the bias beside a weight, without its axes of length 1 and that of the stack; ()
    for none."""
    own = place.name
    if not PART_OF_KERNEL.fullmatch(own):
        return ()
    pairs = {"w": "b"} if own == "w" else {own: re.sub("kernel|weight", "bias", own)}
    name = pairs[own] if pairs[own] != own else "b"
    shape = place.siblings.get(name, ())
    if stack is not None and len(shape) > stack:
        shape = shape[:stack] + shape[stack + 1 :]
    return tuple(n for n in shape if n > 1)


def _last(place: Place, shape: Shape, bias: Shape, inside_stack: bool) -> Roles:
    """The roles of axes where outputs are last, counted from the end of the shape of one layer."""
    rank = len(shape)
    if rank == 2:
        return _plain()
    if place.owner == "Linear":
        return (-1,), (-2,), tuple(range(-rank, -2)), ()
    if _is_transposed(place) and place.name == "w":
        return _transposed()
    if len(bias) == 1:
        return (
            _transposed()
            if bias[0] == shape[-2] != shape[-1]
            else _merged(place, shape) or _plain()
        )
    if len(bias) > 1:
        return _by_wide_bias(place, shape, bias)
    words = words_of(place.module)
    if "einsum" in words and not _merges_heads(place):
        return (
            (-1,),
            (-2,),
            tuple(range(-rank, -2)),
            (),
        )  # Gemma's q_einsum and kv_einsum: heads, D, dim
    if rank == 3 or (rank == 4 and not inside_stack):
        heads = _split(place, shape) or _merged(place, shape)
        if heads is not None:
            return heads
    outputs, inputs, stacked, _ = _plain()
    return outputs, inputs, stacked, () if inside_stack else _unsure(place, shape)


def _split(place: Place, shape: Shape) -> Roles | None:
    """The roles of (in, heads, dim), which is told from (layers, in, out) by the number of heads
    being small."""
    if not _splits_heads(place) or shape[-3] < shape[-2]:
        return None
    return (-2, -1), (-3,), tuple(range(-len(shape), -3)), ()


def _merged(place: Place, shape: Shape) -> Roles | None:
    """The roles of (heads, dim, out), which is told from (layers, in, out) by heads · dim = out."""
    if not _merges_heads(place) or shape[-3] * shape[-2] != shape[-1]:
        return None
    return (-1,), (-3, -2), tuple(range(-len(shape), -3)), ()


def _plain() -> Roles:
    return (-1,), (-2,), (), ()


def _transposed() -> Roles:
    return (-2,), (-1,), (), ()


def _by_wide_bias(place: Place, shape: Shape, bias: Shape) -> Roles:
    """A bias with several axes: of one output each, or of stacked layers."""
    rank = len(shape)
    wide = len(bias)
    suffix = bias == shape[rank - wide :] and wide < rank
    layers = wide < rank and bias[:-1] == shape[: wide - 1] and bias[-1] == shape[-1]
    dense = bool(DENSE & set(words_of(place.module)))
    if layers and (not suffix or (dense and not _splits_heads(place))):
        return (-1,), (-2,), tuple(range(-rank, -rank + wide - 1)), ()
    if suffix:
        return tuple(range(-wide, 0)), (-wide - 1,), (), ()
    if rank > 2 and bias == (shape[-1], shape[1]):
        # Flax's vmap and scan with variable_axes 1: (in, L, out) and (out, L).
        inputs = -3 if rank == 3 else -2
        return (-1,), (inputs,), (1 - rank,), ()
    return _plain()


def _unsure(place: Place, shape: Shape) -> tuple[int, ...]:
    """The leading axes that may be layers or a window."""
    window = shape[:-2]
    if not window or _is_conv(place):
        return ()
    same = len(set(window)) == 1 and window[0] <= WINDOW
    if len(window) > 1 and same:
        return ()
    inner = window[1:]
    if len(inner) > 1 and len(set(inner)) == 1 and inner[0] <= WINDOW:
        return (-len(shape),)  # layers of convolutions with a square window
    return tuple(range(-len(shape), -2))


CLASS_RANKS = {
    "Linear": 2,
    "Embedding": 2,
    "LSTMCell": 2,
    "GRUCell": 2,
    "Conv1d": 3,
    "Conv2d": 4,
    "Conv3d": 5,
}


def _first(place: Place, shape: Shape, bias: Shape, inside_stack: bool) -> Roles:
    """The roles of axes where outputs are first."""
    rank = len(shape)
    if rank == 2:
        return _plain() if _is_conv1d(place, shape, bias) else ((-2,), (-1,), (), ())
    depth = CLASS_RANKS.get(place.owner.replace("ConvTranspose", "Conv"))
    layers = 0 if depth is None else max(rank - depth, 0)
    if depth is None and len(bias) > 1 and bias == shape[: len(bias)]:
        layers = len(bias) - 1
    output = layers - rank
    stacked = tuple(range(-rank, output))
    if not place.owner and not layers and _is_torch_transposed(place, shape, bias):
        return (output + 1,), (output,), (), ()
    # The class of a module that someone wrote does not tell a vmapped matrix from a convolution.
    told = not place.owner or depth is not None or bias or inside_stack or _is_conv(place)
    return (output,), (output + 1,), stacked, () if told else (output + 1,)


def _is_conv1d(place: Place, shape: Shape, bias: Shape) -> bool:
    """GPT-2's layer, whose weight is (in, out): its bias tells, or the layers around it."""
    if len(bias) == 1 and bias[0] in shape and shape[0] != shape[1]:
        return bias[0] == shape[1]
    named = place.module in ("c_attn", "c_proj", "c_fc", "q_attn")
    return named and place.tree is not None and place.tree.has_conv1d


def _is_torch_transposed(place: Place, shape: Shape, bias: Shape) -> bool:
    if len(bias) == 1 and bias[0] in shape[:2] and shape[0] != shape[1]:
        return bias[0] == shape[1]
    return _is_transposed(place)
