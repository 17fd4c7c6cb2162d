"""What the name of a leaf, and the names around it, say of its kind: kernel, bias, norm, embedding,
statistic.

Plain strings and shapes: nothing here needs JAX, so a file's tensors are judged by the same words
as a tree's leaves.
"""

import re
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, NamedTuple

Shape = tuple[int, ...]

# --- paths ---


def parts(path: str) -> list[str]:
    r"""The names in a path, the leaf's last. Haiku's keys have slashes of their own, PyTorch's have
    dots.

    >>> parts(r"mlp\/~\/linear_0/w"), parts("h.0.attn.weight")
    (['mlp', 'linear_0', 'w'], ['h', '0', 'attn', 'weight'])
    """
    return [name.partition(":")[0] for name in re.split(r"\\?/|\.", path) if name not in ("", "~")]


def module_of(names: Sequence[str]) -> str:
    """The name of the module that holds a leaf; numbers of a list are passed over."""
    return next((name for name in reversed(names[:-1]) if not name.isdigit()), "")


def words_of(name: str) -> list[str]:
    """The words of a name in lower case: of `LayerNorm_0` these are layer, norm, 0.

    >>> words_of("LayerNorm_0"), words_of("preBN"), words_of("batchnorm2d")
    (['layer', 'norm', '0'], ['pre', 'bn'], ['batchnorm2d'])
    """
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name)
    return [word for word in re.split(r"[^a-z0-9]+", spaced.lower()) if word]


# --- kinds of names ---

BIAS = re.compile(r"(.*_)?bias(es|_.*)?|beta|offset|shift")
MAYBE_BIAS = re.compile(
    r"b(\d+|_.*)?"
)  # or one matrix of several, as LoRA's b: the shapes beside it tell
GAIN = re.compile(r"(.*_)?scales?|gamma|gain")
KERNEL = re.compile(r"kernel|weight|w")
PART_OF_KERNEL = re.compile(
    r"(.*_)?(kernel|weight|w)(\d+|_.*)?"
)  # w_i, weight_hh_l0, in_proj_weight, w1
MATRIX = re.compile(PART_OF_KERNEL.pattern + r"|lora.*|.*proj|[ac-z]")
STATISTIC = re.compile(r"(running_|moving_|batch_)?(mean|var|variance)|average")
COLLECTIONS = ("batch_stats", "cache", "intermediates")
EMBEDDING = re.compile(r"(.*_)?emb(ed(der|ding)?)?s?|w[tp]e|(.*_)?tokens?")
POSITION = re.compile(r"(.*_)?(pos|positions?|positional)(_.*)?|pos_?emb.*")
TABLE = re.compile(
    r"(.*_)?emb(ed(der|ding)?)?s?|embed_tokens|w[tp]e|shared|(.*_)?(attention|position)_bias"
)
NORM = re.compile(
    r"(.*norm(alization)?|[lbg]n)(\d*d?)?"
)  # a word of a module's name, as layernorm, bn1, norm2d


def is_norm(name: str) -> bool:
    """Whether a module is named like a normalisation. `WeightNorm`, which holds a layer, is none.

    >>> [is_norm(name) for name in ("ln_1", "BatchNorm_0", "final_layernorm", "key_ln", "bn2",
    ...     "norm_proj", "linear")]
    [True, True, True, True, True, False, False]
    """
    words = words_of(name)
    while words and (words[-1].isdigit() or words[-1] in ("f", "out", "in", "pre", "post")):
        words.pop()
    return bool(words) and NORM.fullmatch(words[-1]) is not None


def is_embedding(name: str) -> bool:
    """Whether a leaf is named like a table of vectors, or like what is learned for each
    position."""
    name = name.lower()
    if "patch" in name or MATRIX.fullmatch(name):
        return False  # patches are embedded by a convolution
    return bool(EMBEDDING.fullmatch(name) or POSITION.fullmatch(name))


def is_kernel(name: str) -> bool:
    """Whether a leaf has one of the names that frameworks give to the weights of a layer."""
    return KERNEL.fullmatch(name) is not None


# --- places ---


class Place(NamedTuple):
    """A leaf among its neighbours, of which only names and shapes are looked at.

    Attributes:
      path: its keys joined by "/".
      shape: of the dense array.
      owner: the name of the class of the module that holds it; "" of a dict.
      tree: the whole tree that it is in, or None.
    """

    path: str
    shape: Shape
    owner: str = ""
    tree: "Surroundings | None" = None

    @property
    def names(self) -> list[str]:
        return parts(self.path)

    @property
    def name(self) -> str:
        return (self.names or [""])[-1]

    @property
    def module(self) -> str:
        return module_of(self.names)

    @property
    def siblings(self) -> dict[str, Shape]:
        """name -> shape of the other leaves that the same module holds."""
        return {} if self.tree is None else self.tree.siblings(self.path)


class Surroundings:
    """The names and shapes of a whole tree, put in order when they are first asked for."""

    def __init__(
        self,
        paths: Sequence[str],
        leaves: Sequence[Any],
        owners: Sequence[str] = (),
        shape_of: Callable[[Any], Shape] = lambda x: tuple(getattr(x, "shape", ())),
    ):
        self.paths = paths
        self.leaves = leaves
        self.owners = owners or [""] * len(paths)
        self._shape_of = shape_of

    def places(self) -> list[Place]:
        """Every leaf as a place."""
        return [
            Place(path, self._shape_of(leaf), owner, self)
            for path, leaf, owner in zip(self.paths, self.leaves, self.owners)
        ]

    def siblings(self, path: str) -> dict[str, Shape]:
        *module, name = parts(path) or [""]
        held = self.modules.get(tuple(module), {})
        return {other: self._shape_of(leaf) for other, leaf in held.items() if other != name}

    @cached_property
    def modules(self) -> dict[tuple[str, ...], dict[str, Any]]:
        """The leaves by the module that holds them."""
        held: dict[tuple[str, ...], dict[str, Any]] = {}
        for path, leaf in zip(self.paths, self.leaves):
            *module, name = parts(path) or [""]
            held.setdefault(tuple(module), {})[name] = leaf
        return held

    def stacked_axis(self, path: str) -> int | None:
        """The axis on which a scan has stacked the layers that a leaf belongs to; None where
        nothing tells.

        What tells are norms and biases with one axis too many, and that all leaves of a common
        ancestor have an axis of this length there: 0 as `nn.scan` puts it, or 1 as MaxText does.
        """
        names = parts(path)
        for depth in range(1, len(names)):
            axis = self._stacks.get(tuple(names[:depth]))
            if axis is not None:
                return axis
        return None

    @cached_property
    def _stacks(self) -> dict[tuple[str, ...], int]:
        """ancestor -> the axis on which everything below it is stacked."""
        below: dict[tuple[str, ...], list[tuple[list[str], Shape]]] = {}
        for path, leaf in zip(self.paths, self.leaves):
            names = parts(path)
            shape = self._shape_of(leaf)
            for depth in range(1, len(names)):
                below.setdefault(tuple(names[:depth]), []).append((names, shape))
        found = {ancestor: _common_stack(leaves) for ancestor, leaves in below.items()}
        return {ancestor: axis for ancestor, axis in found.items() if axis is not None}

    @cached_property
    def has_conv1d(self) -> bool:
        """Whether GPT-2's `Conv1D`, whose weights are (in, out), is what `c_attn` and its kin are
        in this tree.

        Others write such layers as `nn.Linear`, (out, in), under the same names: c_attn and c_fc
        have more outputs than inputs, which tells.
        """
        for module, held in self.modules.items():
            shape = self._shape_of(held["weight"]) if "weight" in held else ()
            if (
                len(shape) == 2
                and module
                and module[-1] in ("c_attn", "c_fc")
                and shape[0] != shape[1]
            ):
                return shape[1] > shape[0]
        return False


def _common_stack(leaves: Sequence[tuple[list[str], Shape]]) -> int | None:
    shapes = [shape for _, shape in leaves]
    norms = [
        shape for names, shape in leaves if is_norm(module_of(names)) or GAIN.fullmatch(names[-1])
    ]
    biases = [shape for names, shape in leaves if BIAS.fullmatch(names[-1])]
    modules = {tuple(names[:-1]) for names, _ in leaves}
    if any(len(shape) < 2 for shape in shapes):
        return None
    if len({shape[0] for shape in shapes}) == 1 and (
        _wide(norms) or (_wide(biases) and len(modules) > 1)
    ):
        return 0
    if len({shape[1] for shape in shapes}) == 1 and _wide(norms) and len(modules) > 1:
        return 1
    return None


def _wide(vectors: Sequence[Shape]) -> bool:
    return any(shape[0] > 1 and max(shape[1:]) > 1 for shape in vectors)


# --- what is no weight ---


def why_no_weight(place: Place) -> str:
    """Why a float leaf is not a weight to be compressed by default; "" when it is one."""
    if len(place.shape) < 2:
        return f"{len(place.shape)}-D"
    name = place.name
    module = place.module
    if (
        BIAS.fullmatch(name)
        or GAIN.fullmatch(name)
        or STATISTIC.fullmatch(name)
        or is_embedding(name)
    ):
        return f"named {name}"
    collection = next((part for part in place.names[:-1] if part in COLLECTIONS), None)
    if collection is not None:
        return f"in {collection}"
    if name == "hidden" and place.siblings.keys() & {"average", "counter"}:
        return "a running average"
    norm = next((holder for holder in (module, place.owner) if is_norm(holder)), None)
    if norm is not None:
        return f"in {norm}, a norm"
    if BIAS.fullmatch(module) and not is_kernel(name):
        return f"in {module}, a bias"
    if _is_table(place):
        return f"in {module or place.owner}, an embedding"
    kernel = kernel_beside(place)
    if kernel:
        return f"a bias of {kernel}"
    if sum(n != 1 for n in place.shape) < 2 and not is_kernel(name) and place.path:
        return "one axis longer than 1" if max(place.shape) > 1 else "a single number"
    return ""


def _is_table(place: Place) -> bool:
    """A table of embeddings whose own name is that of any weight: its class or its module's name
    tells."""
    holder = place.owner or place.module
    if (
        place.name != "weight"
        or len(place.shape) > 3
        or "patch" in holder.lower()
        or _has_bias(place)
    ):
        return False  # an embedding of patches is a convolution, and a table has no bias
    if place.owner:
        return "embed" in place.owner.lower()
    return TABLE.fullmatch(place.module.lower()) is not None


def _has_bias(place: Place) -> bool:
    return any(BIAS.fullmatch(name) for name in place.siblings)


def kernel_beside(place: Place) -> str:
    """The name of the kernel beside a leaf that is its bias; "" where there is none.

    The leaf has the kernel's last axes, or those of its channels. Any name will do beside `kernel`,
    `weight` and `w`, but that of another matrix (`lora_a`, `q`); one like `b` is a bias beside
    parts of a kernel too (`w_i`, `w1`).
    """
    named = bool(BIAS.fullmatch(place.name) or MAYBE_BIAS.fullmatch(place.name))
    if MATRIX.fullmatch(place.name):
        return ""
    for name, shape in place.siblings.items():
        if is_kernel(name) and place.shape == shape and named:
            return name
        if (is_kernel(name) or (named and PART_OF_KERNEL.fullmatch(name))) and fits_as_bias(
            place.shape, shape
        ):
            return name
    return ""


def fits_as_bias(bias: Shape, kernel: Shape) -> bool:
    """Whether an array is shaped as the bias of a kernel: its last axes, (L, out) of a stack, or
    (C, 1, 1).

    >>> fits_as_bias((4, 8), (3, 4, 8)), fits_as_bias((3, 8), (3, 4, 8)), fits_as_bias((4, 1, 1),
    ...     (4, 3, 5, 5))
    (True, True, True)
    """
    lengths = tuple(n for n in bias if n > 1)
    if not lengths or len(lengths) >= len(kernel):
        return False
    if lengths == kernel[len(kernel) - len(lengths) :]:
        return True
    return lengths[:-1] == kernel[: len(lengths) - 1] and lengths[-1] in kernel[len(lengths) - 1 :]
