"""A module built anew with `thin.widths`: where it computes the same, and what is said where it
does not.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp

IMAGES = jax.random.normal(jax.random.key(1), (2, 6, 6, 3))


class Net(nn.Module):
    a: int = 8
    b: int = 12
    groups: int = 0

    @nn.compact
    def __call__(self, x):
        norm = nn.GroupNorm(self.groups) if self.groups else nn.BatchNorm(True)
        x = nn.relu(norm(nn.Conv(self.a, (3, 3))(x)))
        x = nn.max_pool(x, (2, 2), (2, 2)).reshape(len(x), -1)
        return nn.Dense(4)(nn.gelu(nn.Dense(self.b)(x)))


def cut(module, **kw):
    variables = module.init(jax.random.key(0), IMAGES)
    thin = jp.shrink(module.apply, variables, IMAGES, ratio=0.5, scope="group", **kw)
    wide = thin.widths
    return thin, (wide["params/Conv_0/kernel"][3], wide["params/Dense_1/kernel"][1])


def test_a_network_of_smaller_widths_agrees():
    thin, (a, b) = cut(Net())
    rebuilt = Net(a, b)
    own = jax.eval_shape(rebuilt.init, jax.random.key(0), IMAGES)
    assert thin.agrees(rebuilt.apply, IMAGES, own=own) < 1e-6
    odd = jax.eval_shape(Net(a, b + 1).init, jax.random.key(0), IMAGES)
    with pytest.raises(
        ValueError, match=r"Dense_1/bias: \(6,\) after the cut, \(7,\) in the rebuilt one"
    ):
        thin.agrees(Net(a, b + 1).apply, IMAGES, own=odd)
    with pytest.raises(
        ValueError, match=r"params/more: nothing after the cut, \(1,\) in the rebuilt one"
    ):
        thin.agrees(
            rebuilt.apply, IMAGES, own=own | {"params": own["params"] | {"more": jnp.ones(1)}}
        )
    with pytest.raises(ValueError, match=r"fails on the smaller params.*shape"):
        thin.agrees(Net(a, b + 1).apply, IMAGES)
    with pytest.raises(ValueError, match=r"returns \[\(2, 3\)\], and apply \[\(2, 4\)\]"):
        thin.agrees(lambda v, x: rebuilt.apply(v, x)[:, :3], IMAGES)
    with pytest.raises(
        ValueError, match=r"differ first in tanh at test_rebuilt.py.*where apply has "
    ):
        thin.agrees(lambda v, x: rebuilt.apply(v, jnp.tanh(x)), IMAGES)
    with pytest.raises(ValueError, match="differs from apply by inf"):
        thin.agrees(lambda v, x: rebuilt.apply(v, x) * np.nan, IMAGES)
    noise = np.linspace(-1, 1, 8, dtype=np.float32).reshape(2, 4)
    first, second = (lambda v, x, s=s: rebuilt.apply(v, x) + s * noise for s in (1, 2))
    again = thin._replace(apply=first)
    with pytest.raises(ValueError, match="constants that they close over differ"):
        again.agrees(second, IMAGES)


def test_the_divisor_of_a_group_norm_is_not_that_of_fewer_channels():
    thin, (a, b) = cut(Net(groups=4), approximate=True)
    with pytest.raises(ValueError, match=r"differ first in \w+.*(a number is|its shapes are)"):
        thin.agrees(Net(a, b, groups=4 if a % 4 == 0 else 2).apply, IMAGES)


def test_attention_is_scaled_by_the_root_of_the_size_it_had():
    def attend(root):
        def f(p, x):
            q, k, v = (x @ p[name] for name in "qkv")
            return jax.nn.softmax(q @ k.T / root(q.shape[-1])) @ v @ p["o"]

        return f

    def draw(i, *shape):
        return jax.random.normal(jax.random.key(i), shape)

    params = {"q": draw(0, 6, 16), "k": draw(1, 6, 16), "v": draw(2, 6, 16), "o": draw(3, 16, 6)}
    thin = jp.shrink(attend(np.sqrt), params, draw(4, 5, 6), ratio=0.5, scope="group")
    with pytest.raises(
        ValueError, match=r"a number is \[2.828\d*\] there, and \[4.0\] in apply, as it was"
    ):
        thin.agrees(attend(np.sqrt), draw(4, 5, 6))
    assert thin.agrees(attend(lambda n: np.sqrt(16.0)), draw(5, 3, 6)) < 1e-6
