"""Losses on feature maps: what is inside the student against what is inside the teacher, example by
example.

    student, teacher      (batch, *positions, channels); `channel_axis` says where the channels
                          stand
    value                 (batch,), float32

Maps of different sizes are average-pooled to the smaller one along each position axis. Channels
must agree where the formula compares them one by one: project the student first, and train the
projection with it. A mask is (batch,), or, for maps of one size, (batch, *positions), as for the
padding of a text: a mean then goes over the kept positions of an example. The scale is that of the
code which the published tables come from (RepDistiller, mdistiller: means over positions and
channels), so that published weights carry over; the factor to the paper's formula is said.
"""

from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from jaxprune.core import arguments
from jaxprune.distill.losses import inputs
from jaxprune.distill.losses.common import (
    any_position,
    count,
    dot,
    finish,
    norm,
    position_mean,
    safe_divide,
    unit,
)


def hint(student: Any, teacher: Any, *, channel_axis: int = -1, mask: Any = None) -> Array:
    """(1/N) Σ (s − t)² over the N positions and channels of a map: FitNets, after the student's
    regressor.

    Args:
      student: r(s), (batch, *positions, channels): the hint layer through a trained projection.
      teacher: t, with the same number of channels.
      channel_axis: where the channels stand in both; 1 for PyTorch's layout. Never 0, which is the
        batch.
      mask: (batch,), or (batch, *positions) for maps of one size.

    Returns:
      (batch,), float32.

    Raises:
      ValueError: batches, axes or channels that differ; a channel axis out of range; a mask of
        another shape or dtype.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> print(jp.distill.losses.hint(jnp.zeros((1, 4, 4, 3)), 2 * jnp.ones((1, 2, 2, 3))))
      [4.]

    Source: Romero et al. 2015, arXiv:1412.6550, whose loss is N/2 times this; libraries take the
    mean.
    """
    s, t, keep = inputs.maps(student, teacher, mask, channel_axis, same_channels=True)
    return finish(position_mean(jnp.mean(jnp.square(s - t), -1), keep), any_position(keep))


def attention_transfer(
    student: Any,
    teacher: Any,
    *,
    p: int = 2,
    form: str = "code",
    channel_axis: int = -1,
    mask: Any = None,
) -> Array:
    """The distance of the two maps of attention, each over its norm (AT).

        Q_i = Σ_c |a_ic|^p at position i,    Q̂ = Q / ‖Q‖₂
        form="code":   (1/N) Σ_i (Q̂_s − Q̂_t)²_i        form="paper":   ‖Q̂_s − Q̂_t‖₂

    Invariant to the scale of either map, and to the number of channels, which may differ.

    Args:
      student, teacher: (batch, *positions, channels), at least one axis of positions.
      p: the power, at least 1.
      form: "code", as the authors' code and every library; or "paper", the unsquared norm of
        equation (2).
      channel_axis, mask: as `hint`.

    Returns:
      (batch,), float32.

    Raises:
      ValueError: as `hint`, except that channels may differ; no positions; p < 1; another form.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> left, right = jnp.array([[[1.0], [0.0]]]), jnp.array([[[0.0, 0.0], [2.0, 2.0]]])
      >>> print(jp.distill.losses.attention_transfer(left, right))
      [1.]

    Source: Zagoruyko & Komodakis 2017, arXiv:1612.03928; torchdistill has both forms, and sums the
    paper's.
    """
    inputs.choice("form", form, ("code", "paper"))
    if not inputs.concrete(p) or arguments.finite("p={}", p) < 1:
        raise ValueError(f"p={p}: give a number >= 1")
    s, t, keep = inputs.maps(student, teacher, mask, channel_axis, same_channels=False, least=3)
    gap = _attention(s, p) - _attention(t, p)
    if form == "paper":
        return finish(norm(gap), any_position(keep))
    return finish(position_mean(jnp.square(gap), keep.reshape(gap.shape)), any_position(keep))


def _attention(x: Array, p: int) -> Array:
    return unit(jnp.mean(jnp.abs(x) ** p, -1).reshape(x.shape[0], -1))


def hidden_mse(student: Any, teacher: Any, *, mask: Any = None) -> Array:
    """(1/D) Σ (h_s − h_t)² of hidden states, one value a vector: an image's features, or a token's.

    Args:
      student, teacher: (*examples, features).
      mask: (*examples,) of booleans: the tokens that are not padding.

    Returns:
      (*examples,), float32.

    Raises:
      ValueError: shapes that differ (project the student first); a mask of another shape or dtype.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> print(jp.distill.losses.hidden_mse(jnp.array([[1.0, 2.0]]), jnp.array([[1.0, 4.0]])))
      [2.]

    Source: TinyBERT, Jiao et al. 2020, arXiv:1909.10351. tunix averages over the padding too.
    """
    s, t, keep = inputs.vectors(student, teacher, mask)
    return finish(jnp.mean(jnp.square(s - t), -1), keep)


def hidden_cosine(student: Any, teacher: Any, *, mask: Any = None) -> Array:
    """1 − cos(h_s, h_t), one value a vector. A zero vector has cosine 0 with everything, and no
    gradient.

    Args, returns and errors are those of `hidden_mse`.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> student, teacher = jnp.array([[1.0, 0.0], [0.0, 2.0]]), jnp.array([[3.0, 0.0],
      ...     [1.0, 0.0]])
      >>> print(jp.distill.losses.hidden_cosine(student, teacher))
      [0. 1.]

    Source: DistilBERT, Sanh et al. 2019, arXiv:1910.01108. `optax.cosine_distance` of a zero row is
    NaN by default.
    """
    s, t, keep = inputs.vectors(student, teacher, mask)
    return finish(1 - jnp.sum(unit(s) * unit(t), -1), keep)


def nst(
    student: Any,
    teacher: Any,
    *,
    kernel: str = "polynomial",
    channel_axis: int = -1,
    mask: Any = None,
) -> Array:
    """MMD² between the channels of the two maps: neuron selectivity transfer.

        f_c   the map of channel c, a vector over positions, of norm 1
        mean_ij k(s_i, s_j) + mean_ij k(t_i, t_j) − 2 mean_ij k(s_i, t_j)

        "linear" k = x·y    "polynomial" k = (x·y)²    "gaussian" k = exp(−‖x − y‖² / 2σ²), σ² =
                                                       mean_ij ‖s_i − t_j‖²

    It compares the channels as sets: their order and their number do not matter. σ² is held
    constant.

    Args:
      student, teacher: (batch, *positions, channels), at least one axis of positions; channels may
        differ.
      kernel: "polynomial" (c = 0, d = 2: the paper's best), "linear" or "gaussian".
      channel_axis, mask: as `hint`.

    Returns:
      (batch,), float32, >= 0 up to rounding.

    Raises:
      ValueError: as `attention_transfer`; another kernel.

    Example:
      >>> import jax, jax.numpy as jnp, jaxprune as jp
      >>> t = jax.random.normal(jax.random.key(0), (1, 3, 3, 4))
      >>> # channels in another order
      >>> print(abs(jp.distill.losses.nst(t[..., ::-1], t)) < 1e-6)
      [ True]

    Source: Huang & Wang 2017, arXiv:1707.01219. RepDistiller and mdistiller have the polynomial
    kernel only, and build every product of two channels at every position; this one needs the Gram
    matrices alone.
    """
    inputs.choice("kernel", kernel, ("polynomial", "linear", "gaussian"))
    s, t, keep = inputs.maps(student, teacher, mask, channel_axis, same_channels=False, least=3)
    s, t = (unit(jnp.swapaxes(x.reshape(x.shape[0], -1, x.shape[-1]), 1, 2)) for x in (s, t))

    def mean(k):
        return jnp.mean(k, (-2, -1))

    if kernel != "gaussian":
        power = 1 if kernel == "linear" else 2
        within_student = mean(dot(s, s) ** power)
        within_teacher = mean(dot(t, t) ** power)
        between = mean(dot(s, t) ** power)
        mmd = within_student + within_teacher - 2 * between
        return finish(mmd, any_position(keep))
    variance = lax.stop_gradient(mean(_distances(s, t)))[:, None, None]

    def k(a, b):
        return mean(jnp.exp(-safe_divide(_distances(a, b), 2 * variance)))

    return finish(k(s, s) + k(t, t) - 2 * k(s, t), any_position(keep))


def _distances(a: Array, b: Array) -> Array:
    """‖a_i − b_j‖² between the rows of two (batch, rows, features) of norm 1 or 0."""
    squares = jnp.sum(jnp.square(a), -1)[:, :, None] + jnp.sum(jnp.square(b), -1)[:, None, :]
    return jnp.maximum(squares - 2 * dot(a, b), 0)


def fsp(student: Any, teacher: Any, *, channel_axis: int = -1, mask: Any = None) -> Array:
    """(1/mn) ‖G_s − G_t‖², G = (1/N) Σ_i f_i g_iᵀ: the flow from a layer f (m channels) to a later
    g (n channels).

    Args:
      student, teacher: pairs (f, g) of maps (batch, *positions, channels). The layers of one
        network may differ in size (the larger is average-pooled) and in channels; the two f have as
        many channels as each other, and the two g.
      channel_axis: as `hint`.
      mask: (batch,).

    Returns:
      (batch,), float32.

    Raises:
      ValueError: not pairs; as `hint` otherwise.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> f, g = jnp.ones((1, 4, 4, 2)), jnp.ones((1, 2, 2, 3))
      >>> print(jp.distill.losses.fsp((f, g), (f, 3 * g)))
      [4.]

    Source: Yim et al. 2017, CVPR, "A Gift from Knowledge Distillation", whose loss is mn times this
    and which max-pools. RepDistiller takes the mean, as here; torchdistill sums the norms of
    columns, not squared.
    """
    s, keep = _flow("student", student, mask, channel_axis)
    t, _ = _flow("teacher", teacher, mask, channel_axis)
    s, t = inputs.both(s, t)
    if s.shape != t.shape:
        raise ValueError(
            f"student and teacher: flows of (batch, first channels, second channels) {s.shape} and "
            f"{t.shape}; choose layers of the same channels, or project the student's"
        )
    return finish(jnp.mean(jnp.square(s - t), (-2, -1)), keep)


def _flow(name: str, pair: Any, mask: Any, channel_axis: int) -> tuple[Array, Array]:
    """(batch, first channels, second channels), and which examples are kept."""
    if not (isinstance(pair, tuple | list) and len(pair) == 2):
        raise ValueError(
            f"{name}: a flow goes between two layers; give a pair of feature maps (first, second)"
        )
    names = (f"{name}'s first", f"{name}'s second")
    f, g, keep = inputs.maps(pair[0], pair[1], mask, channel_axis, same_channels=False, names=names)
    f, g = (jnp.swapaxes(x.reshape(x.shape[0], -1, x.shape[-1]), 1, 2) for x in (f, g))
    positions = count(keep, tuple(range(1, keep.ndim)), f.dtype)
    return dot(f, g) / positions[:, None, None], any_position(keep)
