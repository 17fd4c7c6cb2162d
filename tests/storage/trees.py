"""The trees that the storage's tests save."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

import jaxprune.core.arrays as c
from jaxprune.core.factors import LowRank, Shared, Tucker
from jaxprune.core.quantized import Binary, Packed, Quantized, pack
from jaxprune.numerics.grids import NF4

F32 = jnp.dtype("float32")
rng = np.random.default_rng(7)


def normal(*shape, dtype=F32):
    return jnp.asarray(rng.standard_normal(shape).astype(np.float32)).astype(dtype)


def integers(low, high, *shape, dtype=np.uint8):
    return jnp.asarray(rng.integers(low, high, shape).astype(dtype))


def mask(*shape, keep=0.3):
    return jnp.asarray(rng.random(shape) < keep)


def quantized(bits, *shape, dtype=F32, zero=False):
    signed = jnp.int8 if bits <= 8 else jnp.int16
    q = integers(-(2 ** (bits - 1)), 2 ** (bits - 1), *shape, dtype=np.int16).astype(signed)
    scale = jnp.abs(normal(*(1,) * (len(shape) - 1), shape[-1]))
    return Quantized(
        pack(q, bits), scale, jnp.ones(scale.shape, jnp.uint8) if zero else None, bits, dtype
    )


def nf4(*shape):
    return Quantized(pack(integers(0, 16, *shape), 4), jnp.ones((1, shape[-1])), None, 4, F32, NF4)


def binary(*shape):
    return Binary(pack(integers(0, 2, *shape), 1), jnp.ones((1, shape[-1])), jnp.dtype("bfloat16"))


def stack(make, n, *shape):
    each = [make(*shape) for _ in range(n)]
    return jax.tree.map(lambda *xs: jnp.stack(xs), *each)


def codes():
    """Every type, in every nesting that the library makes, and some that it does not."""
    m = mask(24, 10)
    k = normal(16)
    indices = integers(0, 16, 24, 10)
    small_book = Quantized(integers(-128, 128, 16, dtype=np.int8), jnp.ones(1), None, 8, F32)
    bare = c.Clustered(None, indices)

    def masked(*s):
        return c.Masked(normal(*s), mask(*s))

    return {
        "masked": c.Masked(normal(24, 10), m),
        "masked bf16": c.Masked(normal(24, 10, dtype=jnp.bfloat16), m),
        "masked twice": c.Masked(c.Masked(normal(24, 10), m), mask(24, 10)),
        "masked none": c.Masked(normal(24, 10), jnp.zeros((24, 10), bool)),
        "masked all": c.Masked(normal(24, 10), jnp.ones((24, 10), bool)),
        "masked empty": c.Masked(normal(0, 3), jnp.ones((0, 3), bool)),
        "masked scalar": c.Masked(normal(), jnp.zeros((), bool)),
        "masked broadcast": c.Masked(normal(24, 10), mask(24, 1)),
        "clustered": c.Clustered(k, indices),
        "clustered tiles": c.Clustered(normal(4, 2, 16), indices),
        "clustered u16": c.Clustered(normal(3000), integers(0, 3000, 24, 10, dtype=np.uint16)),
        "clustered i32": c.Clustered(k, indices.astype(jnp.int32)),
        "masked clustered": c.Masked(c.Clustered(k, indices), m),
        "masked clustered quantized": c.Masked(c.Clustered(small_book, indices), m),
        "int8": quantized(8, 24, 10),
        "int6 affine": quantized(6, 24, 10, zero=True),
        "int12": quantized(12, 24, 10, dtype=jnp.dtype("float16")),
        "masked int4": c.Masked(quantized(4, 24, 13), mask(24, 13)),
        "groups": Quantized(integers(-8, 8, 24, 10, dtype=np.int8), normal(4, 10), None, 8, F32),
        "float8": c.Masked(
            Quantized(normal(24, 10).astype(jnp.float8_e4m3fn), jnp.ones((1, 10)), None, 8, F32),
            mask(24, 10),
        ),
        "nf4": c.Masked(nf4(24, 10), m),
        "binary": c.Masked(binary(24, 10), m),
        "shared": Shared(normal(5, 10), integers(0, 5, 24), normal(24), -2),
        "shared masked": Shared(masked(24, 3), integers(0, 3, 10), normal(10), -1),
        "shared batch": Shared(normal(2, 5, 10), integers(0, 5, 2, 24), normal(2, 24), -2),
        "low rank": LowRank(normal(24, 3), normal(3, 10)),
        "low rank nested": LowRank(masked(24, 3), quantized(8, 3, 10)),
        "masked low rank": c.Masked(LowRank(normal(24, 3), normal(3, 10)), m),
        "tucker": Tucker(normal(3, 3, 4, 5), normal(8, 4), normal(5, 10)),
        "tucker batch": Tucker(normal(2, 3, 3, 4, 5), normal(2, 8, 4), normal(2, 5, 10)),
        "dense": c.Dense(normal(24, 10), "factors would be larger"),
        "masked dense": c.Masked(c.Dense(normal(24, 10)), m),
        "stacked": c.Stacked(stack(masked, 3, 8, 10), -2, 3),
        "stacked int4": c.Stacked(
            stack(lambda *s: c.Masked(quantized(4, *s), mask(*s)), 3, 8, 10), -1, 3
        ),
        "masked stacked": c.Masked(c.Stacked(stack(masked, 3, 8, 10), -1, 3), mask(8, 10, 3)),
        "batch": stack(
            lambda *s: c.Masked(c.Clustered(normal(16), integers(0, 16, *s)), mask(*s)), 3, 8, 10
        ),
        "common": c.Common(k, {"a": bare, "b": [c.Masked(bare, m), normal(3)]}),
        "common quantized": c.Common(small_book, {"a": bare}),
        "packed": Packed(pack(integers(0, 8, 5, 9), 3).words, 9),
    }


DTYPES = [
    "bool",
    "int2",
    "int4",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint2",
    "uint4",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "float16",
    "bfloat16",
    "float32",
    "float64",
    "complex64",
    "float8_e3m4",
    "float8_e4m3",
    "float8_e4m3b11fnuz",
    "float8_e4m3fn",
    "float8_e4m3fnuz",
    "float8_e5m2",
    "float8_e5m2fnuz",
    "float8_e8m0fnu",
    "float4_e2m1fn",
]


def bits_of(dtype):
    """An array of a dtype with every pattern of bits that fits, NaNs of all kinds among them."""
    dtype = np.dtype(getattr(ml_dtypes, dtype, dtype))
    width = {"bool": 1, "int2": 2, "uint2": 2, "int4": 4, "uint4": 4, "float4_e2m1fn": 4}.get(
        dtype.name
    )
    if width:
        octets = rng.integers(0, 2**width, 70).astype(np.uint8)
        return octets.astype(np.int8).astype(dtype) if "int" in dtype.name else octets.view(dtype)
    return np.frombuffer(rng.bytes(70 * dtype.itemsize), dtype).copy()


def same(x, y):
    """Whether two leaves are alike bit for bit, and of one kind."""
    if not hasattr(x, "dtype"):
        return type(x) is type(y) and (x == y or x != x)
    kinds = isinstance(x, jax.Array) == isinstance(y, jax.Array)
    a = np.asarray(x)
    b = np.asarray(y)
    if a.dtype.name in (
        "int2",
        "int4",
        "uint2",
        "uint4",
    ):  # in memory the other bits of a byte may be anything
        a = a.astype(np.int8)
        b = b.astype(np.int8)
    return kinds and x.dtype == y.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def assert_same(x, y):
    assert jax.tree.structure(x) == jax.tree.structure(y)
    for a, b in zip(jax.tree.leaves(x), jax.tree.leaves(y)):
        assert same(a, b), (a, b)


def cleaned(tree):
    """The tree with zeros under every mask: what a file keeps of it."""

    def under(x, m):
        if m is None or x is None:
            return x if x is None or not c.is_code(x) else clean(x, None)
        if c.is_code(x):
            return clean(x, m)
        return jnp.where(m, x, jnp.zeros((), x.dtype)) if x.shape == m.shape else x

    def clean(x, m):
        if isinstance(x, c.Masked):
            inner = under(x.mask, m)
            return c.Masked(under(x.values, inner), inner)
        if isinstance(x, c.Common):
            return x.replace(tree=cleaned(x.tree))
        if isinstance(x, Packed):
            if m is None:
                return x
            return pack_like(x, jnp.where(m, x.materialize(), 0))
        if isinstance(x, c.Stacked) and m is not None:
            m = jnp.moveaxis(m, x.axis, -x.rank)
        hidden = {"values", "indices", "q", "signs", "each"}
        return x.replace(
            **{n: under(getattr(x, n), m if n in hidden else None) for n in x.fields()}
        )

    return jax.tree.map(lambda x: clean(x, None) if c.is_code(x) else x, tree, is_leaf=c.is_code)


def pack_like(x, codes):
    return pack(codes.astype(jnp.int8 if x.signed else jnp.uint8), x.bits)
