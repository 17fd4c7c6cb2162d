"""Every compression of the library, one line each: the laws run over this table."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jaxprune as jp


class Method(NamedTuple):
    """A compression and what the laws may ask of it.

    Attributes:
      name: of the row.
      at: budget -> compression; budgets in rising order, the first is the one that most laws use.
      budgets: rising; `full` is one that loses nothing.
      projects: encoding twice equals encoding once.
      traced: works under jit and vmap (False where shapes depend on data).
      gathers: may gather one leaf of a sharded tree, and says so.
      inexact: the code goes through float arithmetic, so equality is up to rounding.
    """

    name: str
    at: Callable[[Any], jp.Compression]
    budgets: tuple[Any, ...]
    full: Any = None
    projects: bool = True
    traced: bool = True
    gathers: bool = False
    inexact: bool = False

    @property
    def compression(self) -> jp.Compression:
        return self.at(self.budgets[0])


def _keep(**kw):
    return lambda density: jp.prune(1 - density, **kw)


book = jp.where.field("codebook")
matrix = jp.where.weights & jp.where.ndim(2)
DENSITIES = (0.25, 0.5, 0.75, 0.9)

METHODS = [
    Method("prune", _keep(), DENSITIES, 1.0),
    Method("prune global", _keep(allocate=jp.allocate.global_), DENSITIES, 1.0),
    Method("prune erk", _keep(allocate=jp.allocate.erk), DENSITIES, 1.0),
    Method("prune lamp", _keep(allocate=jp.allocate.lamp), DENSITIES, 1.0, gathers=True),
    Method("prune by path", lambda d: jp.prune({"(.*/)?kernel": 1 - d}), DENSITIES),
    Method("prune threshold", lambda d: jp.prune(threshold=1 - d), DENSITIES),
    Method(
        "prune cubic",
        lambda d: jp.prune(jp.schedules.cubic(0.9, 0, 10, initial=1 - d)),
        DENSITIES,
        1.0,
    ),
    Method("prune fraction, score", _keep(score=lambda p: jp.scores.magnitude(p)), DENSITIES, 1.0),
    Method("prune n:m", lambda n: jp.prune(pattern=jp.patterns.n_m(n, 8)), (2, 4, 6), 8),
    Method(
        "prune n:m, outputs",
        lambda n: jp.prune(pattern=jp.patterns.n_m(n, 4, axis=-1)),
        (1, 2, 3),
        4,
    ),
    Method("prune block", _keep(pattern=jp.patterns.block(4, 4)), DENSITIES, 1.0),
    Method("prune channel", _keep(pattern=jp.patterns.channel(-1)), DENSITIES, 1.0),
    Method("prune input channel", _keep(pattern=jp.patterns.channel(-2)), DENSITIES, 1.0),
    Method("cluster", lambda k: jp.cluster(k), (4, 8, 16, 32)),
    Method(
        "cluster linear", lambda k: jp.cluster(k, init="linear"), (4, 8, 16, 32), projects=False
    ),
    Method(
        "cluster density", lambda k: jp.cluster(k, init="density"), (4, 8, 16, 32), projects=False
    ),
    Method(
        "cluster tile", lambda k: jp.at(matrix, jp.cluster(k, scope=(8,))), (4, 8), gathers=True
    ),
    Method("share k", lambda k: jp.share(k=k), (4, 8, 12), inexact=True, gathers=True),
    Method(
        "share similarity",
        lambda t: jp.share(similarity=t),
        (0.3, 0.5, 0.7),
        1.0,
        traced=False,
        inexact=True,
        gathers=True,
    ),
    Method("quantize", lambda b: jp.quantize(bits=b), (4, 6, 8, 12, 16)),
    Method("quantize tensor", lambda b: jp.quantize(bits=b, axis=None), (4, 5, 8, 10)),
    Method("quantize group", lambda b: jp.quantize(bits=b, group=8), (3, 4, 8)),
    Method("quantize affine", lambda b: jp.quantize(bits=b, kind="affine"), (4, 7, 8, 12)),
    Method("quantize mse", lambda b: jp.quantize(bits=b, range="mse"), (3, 4, 8), projects=False),
    Method("quantize scale", lambda q: jp.quantize(scale=q, bits=16), (16, 64, 1024)),
    Method("entropy_quantize step", lambda s: jp.entropy_quantize(step=s), (0.5, 0.25, 0.1, 0.01)),
    Method(
        "entropy_quantize sqnr",
        lambda db: jp.entropy_quantize(sqnr=db),
        (10, 20, 30),
        projects=False,
        traced=False,
    ),
    Method(
        "entropy_quantize bits",
        lambda b: jp.entropy_quantize(bits_per_weight=b),
        (1, 2, 4),
        projects=False,
        traced=False,
    ),
    Method(
        "prune, entropy_quantize",
        lambda d: jp.chain(jp.prune(1 - d), jp.entropy_quantize(step=0.2)),
        DENSITIES,
    ),
    Method("float8 e4m3", lambda _: jp.quantize(kind="float8_e4m3"), (8,)),
    Method("float8 e5m2", lambda _: jp.quantize(kind="float8_e5m2"), (8,)),
    Method("nf4", lambda g: jp.quantize(kind="nf4", group=g), (8,)),
    Method("binary", lambda _: jp.quantize(bits=1), (1,)),
    Method("ternary", lambda _: jp.quantize(kind="ternary"), (2,)),
    Method("factorize", lambda r: jp.factorize(rank=r), (2, 3, 4), inexact=True, gathers=True),
    Method(
        "factorize energy",
        lambda e: jp.factorize(energy=e),
        (0.3, 0.5, 0.7),
        projects=False,
        traced=False,
        inexact=True,
        gathers=True,
    ),
    Method(
        "deep compression",
        lambda d: jp.chain(jp.prune(1 - d), jp.cluster(8), jp.at(book, jp.quantize(bits=8))),
        (0.25, 0.5),
    ),
    Method("prune, quantize", lambda d: jp.chain(jp.prune(1 - d), jp.quantize(bits=4)), DENSITIES),
    Method(
        "every, between",
        lambda d: jp.every(
            2, jp.between(0, 9, jp.prune(jp.schedules.cubic(0.9, 0, 8, initial=1 - d)))
        ),
        DENSITIES,
    ),
]
