"""How many blocks go beside units: the plan whose outputs are nearest, of plans that cost the
same.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from jaxprune.structure.choose.mixing import counts

RNG = np.random.default_rng(3)


def draw(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def stream(p, x):
    for up, down in p["blocks"]:
        x = x + jax.nn.relu(x @ up) @ down
    return x @ p["head"]


def params(scales, dead=0):
    """Blocks of 16 units, of which some do nothing; the scale of what each adds."""
    blocks = []
    for scale in scales:
        down = 0.2 * scale * draw(16, 6)
        blocks.append((draw(6, 16).at[:, :dead].multiply(1e-6), down.at[:dead].multiply(1e-6)))
    return {"blocks": blocks, "head": draw(6, 3)}


X = draw(64, 6)
NAMES = {
    "units that do nothing": (params([1, 1], dead=8), 0),
    "blocks that do nothing": (params([1, 0]), 1),
}


@pytest.mark.parametrize(
    "name, repaired", [(name, repaired) for name in NAMES for repaired in (True, False)]
)
def test_what_does_nothing_goes(name, repaired):
    p, wanted = NAMES[name]
    thin = jp.shrink(stream, p, X, flops=0.54, depth=jp.Depth(repaired=repaired))
    assert len(thin.plan.blocks) == wanted
    tried = {one.deep: one.change for one in thin.report.tried}
    assert (
        tried[wanted] == min(tried.values()) < 1e-3 and 0 in tried
    )  # widths alone are among what is compared
    assert thin.report.flops[1] <= 0.54 * thin.report.flops[0] and f"{wanted} -> " in str(
        thin.report
    )
    if repaired and wanted == 0:  # and their change is that after the repair
        alone = jp.shrink(stream, p, X, flops=0.54)
        made = jp.reconstruct(stream, p, alone.plan, [(X,)]).params
        change = (
            jnp.square(alone.apply(made, X) - stream(p, X)).sum() / jnp.square(stream(p, X)).sum()
        )
        np.testing.assert_allclose(tried[0], change, rtol=1e-2, atol=1e-9)


def test_widths_alone_that_miss_the_budget_are_not_compared():
    p = params([1, 1, 1, 1])
    thin = jp.shrink(stream, p, X[:2], flops=0.3, depth=True, round_to=8, where="blocks/.*")
    assert all(one.deep > 0 for one in thin.report.tried) and thin.plan.blocks
    with pytest.raises(ValueError, match=r"flops=0.001 cannot be met"):
        jp.shrink(stream, p, X[:2], flops=0.001, depth=True)


def test_losses_are_ranked_together_as_they_are():
    p = params([1, 0.1, 1, 1])

    def loss(outputs):
        return jnp.square(outputs - stream(p, X[:2])).mean()

    score = {"blocks": [tuple(jnp.square(w) for w in pair) for pair in p["blocks"]], "head": None}
    thin = jp.shrink(
        stream, p, X[:2], flops=0.6, score=score, normalize="none", depth=jp.Depth(score=loss)
    )
    assert thin.report.tried == ()


def test_powers_of_two_are_tried():
    assert (
        counts(0) == [0]
        and counts(1) == [0, 1]
        and counts(9) == [0, 1, 2, 4, 8, 9]
        and counts(8) == [0, 1, 2, 4, 8]
    )
