"""What is written is what is read, by index and by augmentation; and a step learns from the
rows.
"""

import hashlib
import os
import pickle
import struct
import threading
import tracemalloc
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

import jaxprune as jp
from jaxprune.distill import losses
from jaxprune.distill.teachers.cache_writing import _shard, _Source
from tests.distill.cache_toy import FORMS, RNG, TOLD, TOP, W, X, teacher, write


def reference(form, logits):
    """What a form keeps, in plain NumPy."""
    if not isinstance(form, jp.distill.Top):
        return logits.astype(form)
    log_p = logits / form.temperature
    log_p = log_p - np.log(np.exp(log_p).sum(-1, keepdims=True))
    best = np.argsort(-log_p, -1, kind="stable")[..., : form.k]
    head = np.take_along_axis(log_p, best, -1)
    return losses.TopK(head, best, np.log1p(-np.exp(head).sum(-1)))


def assert_kept(found, want):
    if isinstance(want, losses.TopK):
        assert [x.dtype for x in found] == [np.float32, np.int32, np.float32]
        assert_array_equal(found.indices, want.indices)
        assert_allclose(found.log_probs, want.log_probs, rtol=1e-5, atol=1e-6)
        assert_allclose(found.log_tail, want.log_tail, rtol=1e-4)
    else:
        assert found.dtype == want.dtype
        assert_array_equal(found, want)


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("positions", [(), (5,), (2, 3)])
def test_what_is_read_is_what_was_written(form, positions, tmp_path):
    x = RNG.normal(size=(23, *positions, 4)).astype(np.float32)
    cache = write(tmp_path, examples=x, form=form)
    want = reference(form, teacher(x))
    assert (len(cache), cache.form, cache.shape, cache.fingerprint) == (
        23,
        form,
        (*positions, 6),
        TOLD,
    )
    assert_kept(cache.whole(), want)
    again = jp.distill.Cache.open(tmp_path, fingerprint=TOLD, examples=x)
    for at in (
        [22, 0, 7, 7],
        np.uint8([[5], [6]]),
        jnp.arange(23)[::-1],
        np.zeros((0, 2), int),
        12,
    ):
        rows = np.asarray(at)
        assert_kept(again.read(at), jax.tree.map(lambda x, rows=rows: x[rows], want))


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.integers(1, 11), st.integers(1, 50), st.data())
def test_any_sizes_of_batch_and_shard(n, batch, shard, data):
    import tempfile

    at = data.draw(st.lists(st.integers(0, n - 1), max_size=20))
    x = np.arange(n, dtype=np.float32)[:, None] + np.float32([0, 0.5])
    with tempfile.TemporaryDirectory() as folder:
        cache = write(folder, lambda x: x, x, batch=batch, shard=shard)
        assert len(os.listdir(os.path.join(folder, "augmentation-0"))) == -(-n // min(shard, n))
        assert_array_equal(cache.read(np.array(at, int)), x[at])
        assert_array_equal(cache.whole(), x)


def test_the_files_are_as_described(tmp_path):
    write(tmp_path, augmentation=7, form=TOP)
    manifest = hashlib.sha256((tmp_path / "manifest.json").read_bytes()).digest()
    raw = (tmp_path / "augmentation-7/shard-000003").read_bytes()
    record = struct.calcsize("<2f2Bf")
    assert raw[:-32][5 * record :] == b"jpcache1" + manifest + struct.pack("<QQ", 7, 3)
    assert raw[-32:] == hashlib.sha256(raw[:-32]).digest()
    want = reference(TOP, teacher(X[18:19]))
    a, b, i, j, tail = struct.unpack("<2f2Bf", raw[:record])
    assert_allclose([a, b, tail], [*want.log_probs[0], want.log_tail[0]], rtol=1e-4)
    assert [i, j] == want.indices[0].tolist()


@pytest.mark.parametrize("classes, size", [(256, 9), (257, 10), (65537, 12)])
def test_classes_are_counted_by_the_smallest_integers(classes, size, tmp_path):
    z = np.zeros((2, classes), np.float32)
    z[:, -1] = 1
    cache = write(tmp_path, lambda x: z[: len(x)], X[:2], form=jp.distill.Top(1))
    assert os.path.getsize(tmp_path / "augmentation-0/shard-000000") == 2 * size + 88
    assert cache.whole().indices.tolist() == [[classes - 1]] * 2


def test_augmentations_have_files_of_their_own(tmp_path):
    for seed in (3, 0):
        write(tmp_path, lambda x, seed=seed: teacher(x) + seed, augmentation=seed, form="float32")
    cache = jp.distill.Cache.open(tmp_path, fingerprint=TOLD)
    assert cache.augmentations == (0, 3)
    for seed in (0, 3, 0):
        assert_array_equal(cache.read([20, 1], augmentation=seed), teacher(X[[20, 1]]) + seed)
        assert {a for a, _ in cache._files._maps} == {seed}  # each map holds a file descriptor


def test_examples_are_a_tree_of_which_parts_reach_the_teacher(tmp_path):
    mapped = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.float32, (23, 4))
    mapped[:] = X
    tree = {"x": mapped, "more": (jnp.asarray(X), np.arange(23))}

    def logits_of(part):
        assert isinstance(part["more"][0], jax.Array)
        return (
            teacher(part["x"])
            + np.asarray(part["more"][0]).sum(1, keepdims=True)
            + part["more"][1][:, None]
        )

    want = teacher(X) + X.sum(1, keepdims=True) + np.arange(23)[:, None]
    cache = write(tmp_path / "cache", logits_of, tree, form="float32", batch=5, shard=7)
    assert_allclose(cache.whole(), want, rtol=1e-6)


def test_bfloat16_float16_and_float64_logits(tmp_path):
    for dtype in (jnp.bfloat16, np.float16, np.float64):
        z = (
            jnp.asarray(teacher(X)).astype(dtype)
            if dtype != np.float64
            else teacher(X.astype(np.float64))
        )
        cache = write(
            tmp_path / np.dtype(dtype).name, lambda x, z=z: z[: len(x)], batch=23, shard=23
        )
        assert_array_equal(cache.whole(), np.asarray(z).astype(np.float64).astype(np.float16))


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_classes_that_cannot_be_stay_so(form, tmp_path):
    z = teacher(X)
    z[:, 2] = -np.inf
    z[4] = -np.inf
    found = write(tmp_path, lambda x: z[: len(x)], form=form, batch=23, shard=23).whole()
    if form == TOP:
        assert (
            2 not in found.indices[:4]
            and np.isneginf(found.log_probs[4]).all()
            and not np.isnan(found.log_tail).any()
        )
    else:
        assert_array_equal(np.isneginf(found), np.isneginf(z))


def test_readers_in_threads(tmp_path):
    for seed in (0, 1):
        write(
            tmp_path,
            lambda x, seed=seed: teacher(x) + seed,
            augmentation=seed,
            form="float32",
            shard=2,
        )
    cache = jp.distill.Cache.open(tmp_path, fingerprint=TOLD)
    wrong = []

    def run(seed):
        for i in range(300):
            at = np.array([i % 23, i * 7 % 23])
            wrong.extend([] if (cache.read(at, seed) == teacher(X[at]) + seed).all() else [i])

    threads = [threading.Thread(target=run, args=(i % 2,)) for i in range(4)]
    [t.start() for t in threads], [t.join() for t in threads]
    assert wrong == []


def test_one_batch_at_a_time_is_in_memory(tmp_path):
    x = np.zeros((4096, 1), np.float32)
    tracemalloc.start()
    cache = write(tmp_path, lambda x: np.ones((len(x), 1000), np.float32), x, batch=16, shard=1024)
    assert tracemalloc.get_traced_memory()[1] < 6 * 16 * 4000 + (1 << 17)  # a shard is 2 MB
    tracemalloc.reset_peak()
    cache.read([7, 4000])
    assert tracemalloc.get_traced_memory()[1] < 1.5 * (1 << 20) + (
        1 << 17
    )  # a piece that is being checked
    tracemalloc.stop()


def test_the_number_of_files_is_bounded():
    source = _Source(teacher, np.zeros((1_000_000, 0)), 1000)
    assert _shard(20, source) == 839_000  # 16 MiB, rounded up to whole batches
    assert _shard(2000, source) == 9000 and _shard(256_000, source) == 4000  # 250 files of 1 GB


def test_a_cache_goes_to_another_process_without_its_contents(tmp_path):
    cache = write(tmp_path)
    cache.whole()
    raw = pickle.dumps(cache)
    assert len(raw) < 1000
    assert_array_equal(pickle.loads(raw).read([3]), cache.read([3]))


# --- the step
# ---------------------------------------------------------------------------------------

NET = jp.distill.plain(lambda w, x: jnp.tanh(x @ w["a"]) @ w["b"])
START = {
    "a": RNG.normal(size=(4, 5)).astype(np.float32),
    "b": RNG.normal(size=(5, 6)).astype(np.float32),
}
ONLINE = jp.distill.Online(jp.distill.plain(lambda w, x: x @ w), W)


def stepped(term, batch, given):
    d = jp.distill.distiller(NET, [term], optax.sgd(0.5))
    state = d.init(jax.tree.map(jnp.asarray, START), batch, given, key=jax.random.key(0))
    return jax.jit(d.step)(state, batch, given)


@pytest.mark.parametrize("form, rtol", [("float16", 3e-3), ("float32", 1e-5), (TOP, 1e-5)], ids=str)
def test_a_step_with_rows_of_the_cache_is_that_of_the_teacher(form, rtol, tmp_path):
    if form == TOP:
        term = jp.distill.match(partial(losses.top_k, temperature=form.temperature))
        online = jp.distill.match(
            partial(losses.top_k, k=form.k, temperature=form.temperature), name="top_k"
        )
    else:
        term = online = jp.distill.match(losses.soft_targets)
    cache = write(tmp_path, form=form)
    at = np.array([20, 3, 3, 11])
    keep = np.array([True, True, False, True])
    batch = {"x": X[at], "mask": keep}
    new, metrics = stepped(term, {**batch, "teacher": cache.read(at)}, jp.distill.Precomputed())
    want, said = stepped(online, batch, ONLINE)
    assert_allclose(metrics["loss"], said["loss"], rtol=rtol)
    assert_allclose(new.params["a"], want.params["a"], rtol=rtol, atol=1e-2 * rtol)
    assert metrics["agreement"] == said["agreement"]
    assert ("kl" in metrics) == (form != TOP)


def test_agreement_is_with_the_best_class_of_those_kept():
    best = losses.TopK(np.zeros((4, 1)), np.uint8([[1], [2], [0], [0]]), np.zeros(4))
    d = jp.distill.distiller(jp.distill.plain(lambda w, x: x + w), [], optax.sgd(0.1), labels=1.0)
    batch = {
        "x": jnp.eye(4, 3),
        "y": np.zeros(4, int),
        "teacher": best,
        "mask": np.array([1, 1, 1, 0], bool),
    }
    state = d.init(jnp.zeros(3), batch, jp.distill.Precomputed(), key=jax.random.key(0))
    assert_allclose(d.step(state, batch, jp.distill.Precomputed())[1]["agreement"], 0)
    batch["teacher"] = best._replace(indices=np.uint8([[0], [2], [2], [0]]))
    assert_allclose(
        d.step(state, batch, jp.distill.Precomputed())[1]["agreement"], 2 / 3, rtol=1e-6
    )
    batch["teacher"] = jax.tree.map(
        lambda x: x[:, None], best
    )  # of one position: of another shape than the outputs
    assert "agreement" not in d.step(state, batch, jp.distill.Precomputed())[1]
