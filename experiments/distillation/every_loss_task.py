"""The task of `every_loss`: one teacher, one training set, and students that one loss after the
other teaches.

A step is compiled once for each loss: its weight is an argument. What the teacher says of the
training images, logits and taps, is computed once, as the images are the same in every epoch.
"""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxprune as jp
from experiments.distillation.arms import Arm, joined, network
from experiments.distillation.common import logits, nobody, wrong
from experiments.models import strided
from jaxprune.distill.losses.common import label_cost

MOMENTUM = 0.99  # of the moving average that DINO learns from


@jax.tree_util.Partial
def stored(batch: Any, key: Any) -> dict[str, Any]:
    """A teacher who said it all before: the batch has its outputs and taps under "teacher"."""
    return batch["teacher"]


def run(step: Any, state: Any, batches: Any, steps: int, weight: float) -> Any:
    """The state after all steps."""
    for i in range(steps):
        state = step(state, batches.at(i), weight)
    return state


def trainer(net: Any, arm: Arm | None, teacher: Any, settings: Any, steps: int) -> tuple[Any, Any]:
    """The init of a student and its compiled step: (state, batch, weight) -> state; one compilation
    for all weights.
    """
    rate = optax.cosine_decay_schedule(settings["learning_rate"], steps)
    ema = MOMENTUM if arm and arm.how == "views" else None

    def distiller(weight: Any) -> Any:
        def match(arm):
            return jp.distill.match(
                arm.loss, arm.layers, project=arm.project, weight=lambda step: weight, name="taught"
            )

        terms = [match(arm)] if arm else []
        return jp.distill.distiller(
            net, terms, optax.adam(rate), labels=1.0, ema=ema, compare=False
        )

    def step(state, batch, weight):
        return distiller(weight).step(state, batch, teacher)[0]

    return distiller(0.0).init, jax.jit(step, donate_argnums=0)


def of_teacher(x: np.ndarray, y: np.ndarray, settings: Any) -> Any:
    """The teacher's params, from all labels."""
    model = strided(**settings["teacher"])
    batches = jp.distill.Shuffled({"x": x, "y": y}, settings["batch"], seed=0)
    steps = settings["teacher_epochs"] * batches.steps
    init, step = trainer(jp.distill.plain(model.apply), None, nobody, settings, steps)
    key = jax.random.key(100)
    state = init(model.init(key), {"x": x[:1], "y": y[:1]}, nobody, key=key)
    return run(step, state, batches, steps, 0.0).params


def told(model: Any, params: Any, x: np.ndarray, part: int = 1000) -> dict[str, np.ndarray]:
    """All outputs and taps of the teacher, on the host."""
    seen = jax.jit(jp.reap(model.apply, ".*"))
    parts = [seen(params, x[i : i + part]) for i in range(0, len(x), part)]
    found = {
        name: np.concatenate([np.asarray(taps[name]) for _, taps in parts]) for name in parts[0][1]
    }
    return found | {
        "output": np.concatenate([np.asarray(z) for z, _ in parts]),
        "flow": np.asarray(joined(found)),
    }


class Task:
    """The training set, what the teacher says of it, and how students are judged.

    Attributes:
      taught: name -> what the teacher says of the training images.
    """

    def __init__(self, data: Any, settings: Any) -> None:
        (x, y), self.validation, self.test = data
        self.settings = settings
        self.model = strided(**settings["student"])
        teacher = strided(**settings["teacher"])
        params = of_teacher(x, y, settings)
        n = settings["images"]
        self.errors = wrong(logits(teacher.apply, params, self.test[0]), self.test[1])
        self.x = x[:n]
        self.y = y[:n]
        self.taught = told(teacher, params, self.x)
        before = self.taught["before"]
        self.margin = jp.distill.losses.overhaul_margin(
            before.mean((0, 1, 2)), before.std((0, 1, 2))
        )
        self.steps = settings["epochs"] * (n // settings["batch"])
        self._plain = self.made(None)
        self._alone = {}

    def made(self, arm: Arm | None) -> tuple[Any, Any, Any]:
        """The init and the compiled step of an arm's students, and their teacher. None: labels
        alone.
        """
        how, layers = (arm.how, arm.layers) if arm else ("teacher", None)
        net = network(self.model.apply, layers, how)
        own = {"peers": jp.distill.Itself(net), "views": jp.distill.EMA(net)}
        teacher = own.get(how, stored if arm else nobody)
        return (*trainer(net, arm, teacher, self.settings, self.steps), teacher)

    def alone(self, seed: int) -> Any:
        """The student's params from labels alone; trained once for each seed."""
        if seed not in self._alone:
            self._alone[seed] = self._trained(None, self._plain, 0.0, seed)
        return self._alone[seed]

    def learner(self, arm: Arm) -> Any:
        """(weight, seed) -> params of a student that an arm taught; compiled once."""
        made = self.made(arm)
        return lambda weight, seed: self._trained(arm, made, weight, seed)

    def first(self, arm: Arm | None, seed: int) -> Any:
        """Params before the first step: of one student, or of two peers."""
        key = jax.random.key(seed)
        one = self.model.init(key)
        return (
            [one, self.model.init(jax.random.fold_in(key, 1))]
            if arm and arm.how == "peers"
            else one
        )

    def batches(self, arm: Arm | None, seed: int) -> Any:
        """The training set with what the arm's teacher says of it."""
        fields = {
            "x": self.x,
            "y": np.stack([self.y, self.y], 1) if arm and arm.how == "peers" else self.y,
        }
        if arm and arm.how == "teacher":

            def wanted(name):
                return name == "output" or re.fullmatch(arm.layers or "output", name)

            fields["teacher"] = {name: x for name, x in self.taught.items() if wanted(name)}
        if arm and arm.how == "previous":
            fields["teacher"] = {"output": logits(self.model.apply, self.alone(seed), self.x)}
        return jp.distill.Shuffled(fields, self.settings["batch"], seed=seed, index="index")

    def _trained(self, arm: Arm | None, made: Any, weight: float, seed: int) -> Any:
        (init, step, teacher), batches = made, self.batches(arm, seed)
        state = init(self.first(arm, seed), batches.at(0), teacher, key=jax.random.key(seed))
        after = run(step, state, batches, self.steps, weight).params
        return after[0] if arm and arm.how == "peers" else after

    def score(self, params: Any) -> tuple[int, float]:
        """Errors and loss of the validation split: the less the better."""
        x, y = self.validation
        z = logits(self.model.apply, params, x)
        return wrong(z, y), float(np.mean(label_cost(jnp.asarray(z), jnp.asarray(y))))

    def wrong(self, params: Any) -> int:
        """Errors of the test split."""
        return wrong(logits(self.model.apply, params, self.test[0]), self.test[1])
