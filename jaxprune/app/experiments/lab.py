"""What all seeds of a run share: the model, the data, the compiled phases."""

import dataclasses
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune.app.commands.ending import Stopped
from jaxprune.app.experiments import results as out
from jaxprune.app.experiments.config import Config, settings_of
from jaxprune.app.experiments.models import model_of
from jaxprune.app.experiments.preflight import check_batches, check_rules
from jaxprune.app.experiments.splits import check_outputs, splits_of
from jaxprune.app.experiments.training import Program, evaluator, program
from jaxprune.app.progress import Progress
from jaxprune.app.recipes.strict import closest
from jaxprune.distill.inner import convolves
from jaxprune.distill.signals import Signals


@dataclasses.dataclass(frozen=True)
class Lab:
    """A run's equipment.

    Attributes:
      config: of the run.
      folder: of the run.
      model: init, apply and the shape of an example.
      data: the training split on the device, the others on the host.
      programs: one a phase.
      evaluate: (tree, (x, y)) -> loss and accuracy.
      progress: where it reports.
      signals: that end the run where it can go on later; None leaves them alone.
    """

    config: Config
    folder: Path
    model: Any
    data: Any
    programs: tuple[Program, ...]
    evaluate: Callable[..., tuple[float, float]]
    progress: Progress
    signals: Signals | None = None

    def stop_requested(self) -> bool:
        """Whether a signal came."""
        return self.signals is not None and self.signals.came is not None

    def obey_signals(self) -> None:
        """Ends the run if a signal came.

        Raises:
          Stopped: with its number.
        """
        if self.signals is not None and self.signals.came is not None:
            raise Stopped(self.signals.came)

    def figures(self, tree: Any) -> dict[str, Any]:
        """Loss and accuracy on the splits that report, and the sizes."""
        size = out.sizes(tree)
        splits = {"validation": self.data.validation, "test": self.data.test}
        named = {split: self.score(tree, pair) for split, pair in splits.items()}
        return named | {
            "bytes": size,
            "ratio": size["dense"] / size["stored"],
            "density": out.density(tree),
        }

    def score(self, tree: Any, pair: Any) -> dict[str, float]:
        """Loss and accuracy on one split."""
        return dict(zip(("loss", "accuracy"), self.evaluate(tree, pair)))


def make_lab(
    config: Config, folder: Path, progress: Progress, signals: Signals | None = None
) -> Lab:
    """Loads the model and the data and builds the phases."""
    splits = called(
        config.data, "data", config.data_args, lambda factory, args: splits_of(factory(**args))
    )
    inputs = splits.train[0]
    check_batches(config, len(inputs))

    def make_model(factory: Callable[..., Any], args: dict[str, Any]) -> Any:
        return model_of(factory, args, inputs.shape[1:], inputs.dtype)

    model = called(config.model, "model", config.model_args, make_model)
    if tuple(model.example) != inputs.shape[1:]:
        raise ValueError(
            f"the model takes inputs of {tuple(model.example)}, and the data has {inputs.shape[1:]}"
        )
    params = jax.eval_shape(model.init, jax.random.key(0))
    batch = jax.ShapeDtypeStruct((2, *model.example), inputs.dtype)
    try:
        jaxpr, logits = jax.make_jaxpr(model.apply, return_shape=True)(params, batch)
    except TypeError as e:  # how JAX says that shapes do not fit
        raise ValueError(
            f"model = {config.model!r} does not take a batch of {batch.shape} {batch.dtype}: {e}"
        ) from e
    check_outputs(logits, splits)
    programs = tuple(
        program(model.apply, phase, settings_of(config, phase), len(inputs), convolves(jaxpr))
        for phase in config.phase
    )
    check_rules(config, programs, params)
    data = splits._replace(train=jax.tree.map(jnp.asarray, splits.train))
    return Lab(config, folder, model, data, programs, evaluator(model.apply), progress, signals)


def called(name: str, what: str, args: dict[str, Any], call: Callable[..., Any]) -> Any:
    """call("package.module:function", keywords); every failure to find the function names the
    fix.
    """
    module, _, attribute = name.partition(":")
    if not module or not attribute:
        raise ValueError(
            f"{what} = {name!r}: it must be package.module:function, as experiments.models:lenet300"
        )
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as e:
        top = module.split(".")[0]
        raise ValueError(
            f"{what} = {name!r}: {e}. Run in the folder that holds {top}, or install it"
        ) from e
    if not hasattr(found, attribute):
        public = [n for n in dir(found) if not n.startswith("_")]
        raise ValueError(
            f"{what} = {name!r}: {module} has no {attribute!r}{closest(attribute, public)}"
        )
    try:
        return call(getattr(found, attribute), args)
    except TypeError as e:
        raise ValueError(f"{what} = {name!r}: {e}. Its keywords come from [{what}_args]") from e
    except (
        Exception
    ) as e:  # the user's own code: whatever it raises is told in one line, with its type
        reason = str(e) if isinstance(e, ValueError) else f"{type(e).__name__}: {e}"
        raise ValueError(f"{what} = {name!r}: {reason}") from e
