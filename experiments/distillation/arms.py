"""The classical losses, ready for `every_loss`: which layers each compares, and around which weight
to look.

Layers are the taps of `experiments.models.strided`. Weights are those of RepDistiller's CIFAR-100
runs where it has the loss, else 1; sums over neurons get 1/1000, as there. Four moved on to the
best of a first grid, which lay at its end: `hint`, `attention_transfer`, `dkd` (down) and
`correlation_congruence` (up). `soft_and_hard` is no arm.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

import jaxprune as jp
from jaxprune.distill import losses
from jaxprune.distill.matching import Projection, Stateful, linear


class Arm(NamedTuple):
    """One row of the table.

    Attributes:
      loss: for `match`.
      layers: of both networks, a regular expression; None: their logits.
      weight: the middle of the grid.
      project: for `match`.
      how: who learns from whom: "teacher", "previous" (the student of labels alone), "peers" or
        "views".
    """

    loss: Any
    layers: str | None = None
    weight: float = 1.0
    project: Any = None
    how: str = "teacher"


def arms(examples: int, margin: Any) -> dict[str, Arm]:
    """Name -> arm.

    Args:
      examples: of the training set, for CRD's bank.
      margin: of OFD, (the teacher's second channels,).
    """
    hot = {"temperature": 4.0}
    crd = jp.distill.crd_loss(examples, features=64, negatives=min(256, examples // 2))
    return {
        "soft_targets": Arm(partial(losses.soft_targets, **hot)),
        "logit_mse": Arm(losses.logit_mse),
        "forward_kl": Arm(losses.forward_kl),
        "reverse_kl": Arm(losses.reverse_kl),
        "jsd": Arm(losses.jsd),
        "dkd": Arm(labelled("dkd", partial(losses.dkd, **hot)), weight=0.01),
        "standardised_targets": Arm(losses.standardised_targets),
        "top_k": Arm(partial(losses.top_k, k=3, **hot)),
        "dist": Arm(losses.dist),
        "hint": Arm(losses.hint, "map2", 1.0, "auto"),
        "attention_transfer": Arm(losses.attention_transfer, r"map(\d)", 10.0),
        "hidden_mse": Arm(losses.hidden_mse, "hidden", 1.0, "auto"),
        "hidden_cosine": Arm(losses.hidden_cosine, "hidden", 1.0, "auto"),
        "nst": Arm(losses.nst, "map2", 50.0),
        "fsp": Arm(flow, "flow", 50.0, FLOW),
        "vid": Arm(jp.distill.vid_loss(), "map2", 1.0, "auto"),
        "activation_boundary": Arm(losses.activation_boundary, "before", 1e-3, "auto"),
        "overhaul": Arm(partial(losses.overhaul, margin=margin), "before", 1e-3, "auto"),
        "similarity_preserving": Arm(losses.similarity_preserving, "map2", 3000.0),
        "rkd_distance": Arm(losses.rkd_distance, "hidden", 25.0),
        "rkd_angle": Arm(losses.rkd_angle, "hidden", 50.0),
        "pkt": Arm(losses.pkt, "hidden", 30000.0),
        "correlation_congruence": Arm(losses.correlation_congruence, "hidden", 100.0),
        "crd": Arm(crd, "hidden", 0.8),
        "deep_mutual": Arm(mutual, how="peers"),
        "born_again": Arm(losses.born_again, how="previous"),
        "born_again_confidence": Arm(
            labelled("born_again_confidence", losses.born_again_confidence), how="previous"
        ),
        "born_again_permuted": Arm(permuted, how="previous"),
        "dino": Arm(jp.distill.dino_loss(), "views", how="views"),
    }


def labelled(name: str, loss: Callable[..., Array]) -> Stateful:
    """A loss that asks for the labels."""

    def apply(
        params: Any, memory: Any, s: Any, t: Any, *, batch: Any, key: Any, mask: Any
    ) -> tuple[Array, Any]:
        return loss(s, t, labels=batch["y"], mask=mask), memory

    return Stateful(name, lambda key, s, t: ({}, {}), apply)


def _permuted(
    params: Any, memory: Any, s: Any, t: Any, *, batch: Any, key: Any, mask: Any
) -> tuple[Array, Any]:
    return losses.born_again_permuted(s, t, key=key, mask=mask), memory


permuted = Stateful("born_again_permuted", lambda key, s, t: ({}, {}), _permuted)


def mutual(s: Any, t: Any, *, mask: Any = None) -> Array:
    """Both peers' `deep_mutual`, of logits (batch, 2, classes): each learns from the other."""

    def one(i):
        return losses.deep_mutual(s[:, i], t[None, :, 1 - i], mask=mask)

    return (one(0) + one(1)) / 2


def joined(x: Mapping[str, Any]) -> Array:
    """ "map1", average-pooled to the size of "map2", and "map2": (batch, 7, 7, channels of
    both).
    """
    n, h, w, c = x["map1"].shape
    return jnp.concatenate(
        [x["map1"].reshape(n, h // 2, 2, w // 2, 2, c).mean((2, 4)), x["map2"]], -1
    )


def _parts(x: Array) -> tuple[Array, Array]:
    """The first layer has half the channels of the second."""
    return x[..., : x.shape[-1] // 3], x[..., x.shape[-1] // 3 :]


def flow(s: Any, t: Any, *, mask: Any = None) -> Array:
    """`fsp` between the two layers of "flow"."""
    return losses.fsp(_parts(s), _parts(t), mask=mask)


def flow_projection(width: int) -> Projection:
    """A matrix for either layer, to `width` and twice as many channels."""
    maps = linear(width), linear(2 * width)

    def init(key: Array, x: Any) -> Any:
        return [
            m.init(k, part)
            for m, k, part in zip(maps, jax.random.split(key), _parts(x), strict=True)
        ]

    def apply(params: Any, x: Any) -> Array:
        return jnp.concatenate(
            [m.apply(w, part) for m, w, part in zip(maps, params, _parts(x), strict=True)], -1
        )

    return Projection(init, apply)


FLOW = flow_projection(16)


def network(apply: Callable[..., Any], layers: str | None = None, how: str = "teacher") -> Any:
    """What learns: the model, with the tap "flow" or "views" if that is asked for; or two of it
    side by side.
    """
    if how == "peers":
        return jp.distill.plain(lambda both, x: jnp.stack([apply(p, x) for p in both], 1))
    if layers == "flow":
        return jp.distill.plain(lambda params, x: _with_flow(apply, params, x))
    return jp.distill.plain(partial(_with_views, apply) if layers == "views" else apply)


def _with_flow(apply: Callable[..., Any], params: Any, x: Array) -> Array:
    out, taps = jp.reap(apply, r"map\d")(params, x)
    jp.tap(joined(taps), "flow")
    return out


def _with_views(apply: Callable[..., Any], params: Any, x: Array) -> Array:
    """Two views of an image: moved by two pixels up and left, or down and right. Logits (2, batch,
    classes).
    """
    moved = jnp.concatenate([jnp.roll(x, pixels, (1, 2)) for pixels in (-2, 2)])
    jp.tap(apply(params, moved).reshape(2, len(x), -1), "views")
    return apply(params, x)
