"""Peak memory of functions that are evaluated outside of jit, beside the function that they were
made of.

    python -m experiments.benchmarks.peak_memory [layers] [MiB of an activation]

Each is run in a process of its own, on a chain of products and relus; what is printed is how much
the peak of resident memory grows while it runs. A run that keeps activations until its end grows
with the number of layers.
"""

import multiprocessing
import pathlib
import re
import sys

import jax
import jax.numpy as jnp

import jaxprune as jp

WIDTH = 64


def chain(params, x):
    for w in params:
        x = jp.tap(jax.nn.relu(x @ w), "layer")
    return x


def arguments(layers, mebibytes):
    params = [jnp.eye(WIDTH) for _ in range(layers)]
    rows = mebibytes * 2**20 // (4 * WIDTH)
    return params, jnp.ones((rows, WIDTH))


def dense(params, x):
    return chain(params, x)


def small(params, x):
    thin = jp.shrink(chain, params, jnp.ones((1, WIDTH)), ratio=0.99)
    return thin.apply(thin.params, x)


def tapped(params, x):
    return jp.reap(lambda params, x: chain(params, jp.tap(x, "input")), "input")(params, x)[0]


def inputs(params, x):
    return jp.input_rms(chain, params, [(x,)])


EVALUATED = {"f": dense, "thin.apply": small, "reap": tapped, "input_rms": inputs}


def peak():
    """The most that this process has held, in MiB."""
    return (
        int(re.search(r"VmHWM:\s+(\d+)", pathlib.Path("/proc/self/status").read_text())[1]) / 1024
    )


def grown(name, layers, mebibytes, answers):
    """Puts the growth of the peak into a queue, in MiB."""
    params, x = arguments(layers, mebibytes)
    EVALUATED[name](params, jnp.ones((1, WIDTH)))  # what is traced and compiled once
    jax.block_until_ready(x)
    before = peak()
    jax.block_until_ready(EVALUATED[name](params, x))
    answers.put(peak() - before)


def main():
    layers, mebibytes = (int(a) for a in [*sys.argv[1:], *["60", "32"][len(sys.argv) - 1 :]])
    context = multiprocessing.get_context("spawn")
    print(f"{layers} layers, {mebibytes} MiB an activation, jax {jax.__version__}")
    for name in EVALUATED:
        answers = context.Queue()
        process = context.Process(target=grown, args=(name, layers, mebibytes, answers))
        process.start()
        print(f"{name:<12} {answers.get():>6.0f} MiB", flush=True)
        process.join()


if __name__ == "__main__":
    main()
