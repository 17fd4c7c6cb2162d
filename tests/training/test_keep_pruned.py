"""`keep_pruned` with masks that the user gives."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune as jp


def test_a_mask_that_is_none_or_of_no_param_is_refused():
    params = {"dense": {"kernel": jnp.ones((2, 2))}}
    with pytest.raises(ValueError, match=r"init is a function, not a mask"):
        jp.keep_pruned(jp.prune(0.5)).init(params)
    with pytest.raises(ValueError, match=r"'densse/kernel' is no param. Nearest: 'dense/kernel'"):
        jp.keep_pruned({"densse": {"kernel": jnp.ones((2, 2), bool)}}).init(params)


def test_a_mask_of_all_params_serves_in_a_part_of_them():
    params = {"a": jnp.ones((2, 2)), "b": jnp.ones((2, 2))}
    mask = {"a": jnp.eye(2, dtype=bool), "b": jnp.eye(2, dtype=bool)}
    chain = optax.chain(optax.sgd(0.1), jp.keep_pruned(mask))
    tx = optax.multi_transform({"held": chain, "free": optax.sgd(0.1)}, {"a": "held", "b": "free"})
    updates, _ = tx.update(params, tx.init(params), params)
    after = optax.apply_updates(params, updates)
    assert np.array_equal(after["a"] == 0, ~mask["a"]) and not np.any(after["b"] == 0)
