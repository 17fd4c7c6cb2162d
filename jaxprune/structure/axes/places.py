"""Where in the user's code an equation was written."""

import os
from typing import Any

LIBRARIES = tuple(
    f"{os.sep}{name}{os.sep}" for name in ("jax", "jaxlib", "flax", "equinox", "haiku", "jaxprune")
)


def place(eqn: Any, *outer: Any) -> str:
    """ "primitive at file:line (function)"; "primitive" if unknown.

    Args:
      eqn: the equation.
      outer: those that call it, the nearest first; the first that was written outside of a library
        is the place.
    """
    for one in (eqn, *outer):
        frames = getattr(getattr(one.source_info, "traceback", None), "frames", None) or []
        for f in frames:
            if not any(part in f.file_name for part in LIBRARIES):
                return (
                    f"{eqn.primitive.name} at {os.path.basename(f.file_name)}:{f.line_num} "
                    f"({f.function_name})"
                )
    return eqn.primitive.name
