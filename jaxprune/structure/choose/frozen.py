"""Why nothing can be cut: the reasons that `jp.coupled_axes` gives, axes with the same one
together."""

import re
from collections.abc import Callable, Sequence

import numpy as np

from jaxprune.structure.axes.expressions import size
from jaxprune.structure.axes.groups import Group, Groups

REASONS = 7
"""Lines of reasons in an error, the most frequent ones."""


def refuse_frozen(
    found: Groups, groups: Sequence[Group], where: Callable[[str], bool] | None
) -> None:
    """Refuses a model, or what `where` selects of it, of which nothing can be cut.

    Args:
      found: of `axes`.
      groups: those of units.
      where: whether a path is selected; None: all are.

    Raises:
      ValueError: there is nothing; with the reasons, and `state=` where outputs seem to be new
        values of params.
    """
    chosen = [path for path in found.shapes if where is None or where(path)]
    if not chosen or any(m.path in chosen for g in groups for m in g.members):
        return
    reasons: dict[str, list[str]] = {}
    for name, why in found.frozen.items():
        if name.rpartition("[")[0] in chosen:
            reasons.setdefault(why, []).append(name)
    lines = [
        f"  {_listed(names)}: {why}"
        for why, names in sorted(reasons.items(), key=lambda item: -len(item[1]))
    ]
    if len(lines) > REASONS:
        lines = [
            *lines[: REASONS - 1],
            f"  and {len(lines) - REASONS + 1} more reasons: print(jp.coupled_axes(f, params, x))",
        ]
    what = (
        "nothing can be cut"
        if where is None
        else f"where selects {_listed(chosen)}, of which nothing can be cut"
    )
    raise ValueError(
        "\n".join(
            [
                f"{what}. All axes are frozen:",
                *(lines or ["  all are of size 1"]),
                *_state_hint(found),
            ]
        )
    )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _state_hint(found: Groups) -> list[str]:
    """What to give as `state=`, where outputs are named and shaped as params are."""
    outputs = [path for traced in found.traced for path in traced.paths]
    new_values = [path for path in outputs if _is_new_value(found, path)]
    if not new_values:
        return []
    folder = new_values[0].partition("/")[0]
    pattern = f"{re.escape(folder)}/.*"
    if {path for path in outputs if re.fullmatch(pattern, path)} != set(new_values):
        pattern = "|".join(map(re.escape, new_values))
    return [
        f"Outputs that are new values of params ({_listed(new_values)}) can be cut with them: give "
        f"state={pattern!r}"
    ]


def _is_new_value(found: Groups, output: str) -> bool:
    """Whether an output is named as a param is, below something else, and has its shape."""
    for traced, program in zip(found.traced, found.programs):
        for path, axes in zip(traced.paths, program.outs):
            shape = tuple(map(size, axes))
            same = [
                p
                for p in found.shapes
                if f"/{output}".endswith(f"/{p}") and found.shapes[p].shape == shape
            ]
            if path == output and same and np.ndim(shape):
                return True
    return False
