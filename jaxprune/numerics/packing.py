"""Codes of 1 to 7 bits, packed in bytes.

Bit planes: plane b holds bit b of the codes, eight neighbours of the last axis a byte (little bit
order), so that

    (…, n) codes of `bits` bits  <->  uint8 (…, bits, ⌈n / 8⌉)

The width is the plane count and is not stored; n is the one static size. Leading axes batch. Signed
codes are two's complement; bits of a code beyond its width are dropped. On a mesh each device packs
its own codes, if they fill bytes. `xp` is jax.numpy, or numpy for arrays of the host.
"""

from functools import reduce
from types import ModuleType
from typing import Any

import jax.numpy as jnp

from jaxprune.numerics.placement import merge_axes, spec_of, split_axes


def pack(codes: Any, bits: int, xp: ModuleType = jnp) -> Any:
    """uint8[…, bits, ⌈n/8⌉] of integer codes […, n].

    >>> pack(jnp.array([1, 2, 3]), bits=2).tolist()
    [[5], [6]]
    """
    if not 1 <= bits <= 7:
        raise ValueError(
            f"bits={bits}: codes of 1 to 7 bits are packed; wider ones are stored as they are"
        )
    codes = codes.astype(xp.uint8)
    rest = -codes.shape[-1] % 8
    if rest:
        codes = xp.pad(codes, [(0, 0)] * (codes.ndim - 1) + [(0, rest)])
    eights = split_axes(codes, {codes.ndim - 1: 8})
    place = xp.arange(8, dtype=xp.uint8)

    def byte(b):
        return xp.sum(((eights >> xp.uint8(b)) & xp.uint8(1)) << place, axis=-1, dtype=xp.uint8)

    return xp.stack([byte(b) for b in range(bits)], axis=-2)


def unpack(words: Any, length: int, signed: bool, xp: ModuleType = jnp) -> Any:
    """The codes […, length] of packed words: int8 when signed, else uint8.

    >>> unpack(jnp.array([[5], [6]], jnp.uint8), length=3, signed=False).tolist()
    [1, 2, 3]
    """
    *lead, bits, m = words.shape
    if -(-length // 8) != m:
        raise ValueError(
            f"words of shape {words.shape} cannot hold length={length}: {m} bytes a plane"
        )
    place = xp.arange(8, dtype=xp.uint8)

    def plane(b):
        return ((words[..., b, :, None] >> place) & xp.uint8(1)) << xp.uint8(b)

    spec = spec_of(words)
    eights = reduce(xp.bitwise_or, map(plane, range(bits)))
    codes = merge_axes(eights, (*lead, 8 * m), spec and (*spec[:-2], spec[-1]))[..., :length]
    if not signed:
        return codes
    sign = xp.uint8(1 << (bits - 1))
    return ((codes ^ sign) - sign).astype(
        xp.int8
    )  # in uint8, the borrow fills the upper bits with the sign
