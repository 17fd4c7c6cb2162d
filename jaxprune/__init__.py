"""jaxprune: compress neural networks in JAX.

A compression writes arrays in a shorter code: for weights w it picks a code Θ and a decompression
map Δ with Δ(Θ) near w. Everything here is a pytree transform (`params -> tree of compressed
arrays`) or a function of one; `materialize` gives dense arrays back.
"""

from jaxprune import distill as distill
from jaxprune.app.recipe import recipe as recipe
from jaxprune.core import where as where
from jaxprune.core.arrays import Clustered as Clustered
from jaxprune.core.arrays import Common as Common
from jaxprune.core.arrays import CompressedArray as CompressedArray
from jaxprune.core.arrays import Dense as Dense
from jaxprune.core.arrays import Masked as Masked
from jaxprune.core.arrays import Stacked as Stacked
from jaxprune.core.arrays import materialize as materialize
from jaxprune.core.arrays import nbits as nbits
from jaxprune.core.combinators import at as at
from jaxprune.core.combinators import between as between
from jaxprune.core.combinators import chain as chain
from jaxprune.core.combinators import every as every
from jaxprune.core.combinators import freeze as freeze
from jaxprune.core.combinators import identity as identity
from jaxprune.core.compression import Compression as Compression
from jaxprune.core.factors import LowRank as LowRank
from jaxprune.core.factors import Shared as Shared
from jaxprune.core.factors import Tucker as Tucker
from jaxprune.core.over import over as over
from jaxprune.core.quantized import Binary as Binary
from jaxprune.core.quantized import Packed as Packed
from jaxprune.core.quantized import Quantized as Quantized
from jaxprune.core.trees.partition import combine as combine
from jaxprune.core.trees.partition import partition as partition
from jaxprune.core.trees.partition import value_and_grad as value_and_grad
from jaxprune.jaxprs.flops import flops as flops
from jaxprune.jaxprs.fold_batch_norm import Folded as Folded
from jaxprune.jaxprs.fold_batch_norm import fold_batch_norm as fold_batch_norm
from jaxprune.jaxprs.taps import plant as plant
from jaxprune.jaxprs.taps import reap as reap
from jaxprune.jaxprs.taps import tap as tap
from jaxprune.jaxprs.taps import tap_modules as tap_modules
from jaxprune.jaxprs.taps import tap_names as tap_names
from jaxprune.methods import allocate as allocate
from jaxprune.methods import patterns as patterns
from jaxprune.methods import schedules as schedules
from jaxprune.methods import scores as scores
from jaxprune.methods.cluster import cluster as cluster
from jaxprune.methods.entropy_quantize import entropy_quantize as entropy_quantize
from jaxprune.methods.factorize import factorize as factorize
from jaxprune.methods.prune import prune as prune
from jaxprune.methods.quantize import quantize as quantize
from jaxprune.methods.share import share as share
from jaxprune.report import measure as measure
from jaxprune.report.tables import Summary as Summary
from jaxprune.report.tables import summary as summary
from jaxprune.storage.files import inspect as inspect
from jaxprune.storage.files import load as load
from jaxprune.storage.files import save as save
from jaxprune.storage.format.words import FormatError as FormatError
from jaxprune.structure.apply.plan import Plan as Plan
from jaxprune.structure.axes.groups import coupled_axes as coupled_axes
from jaxprune.structure.choose.activation import input_rms as input_rms
from jaxprune.structure.choose.depth import Depth as Depth
from jaxprune.structure.choose.depth import residual_blocks as residual_blocks
from jaxprune.structure.repair.reconstruct import Reconstruction as Reconstruction
from jaxprune.structure.repair.reconstruct import reconstruct as reconstruct
from jaxprune.structure.shrink import shrink as shrink
from jaxprune.structure.time.timings import Timings as Timings
from jaxprune.training.attract import attract as attract
from jaxprune.training.floats_only import floats_only as floats_only
from jaxprune.training.group_penalty import group_penalty as group_penalty
from jaxprune.training.keep_pruned import keep_pruned as keep_pruned
from jaxprune.training.project import project as project
from jaxprune.training.rate_penalty import rate_penalty as rate_penalty
from jaxprune.training.straight_through import straight_through as straight_through

__version__ = "0.1.0"
