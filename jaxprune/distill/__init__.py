"""Distillation: a small network learns from a large one."""

from jaxprune.distill import losses as losses
from jaxprune.distill.data_free import DataFree as DataFree
from jaxprune.distill.data_free import DataFreeState as DataFreeState
from jaxprune.distill.data_free import data_free as data_free
from jaxprune.distill.diagnostics import disagreement as disagreement
from jaxprune.distill.networks import Given as Given
from jaxprune.distill.networks import Network as Network
from jaxprune.distill.networks import Online as Online
from jaxprune.distill.networks import Parts as Parts
from jaxprune.distill.networks import linen as linen
from jaxprune.distill.networks import nnx as nnx
from jaxprune.distill.networks import plain as plain
from jaxprune.distill.step import Distiller as Distiller
from jaxprune.distill.step import State as State
from jaxprune.distill.step import distiller as distiller
from jaxprune.distill.terms import Projection as Projection
from jaxprune.distill.terms import Term as Term
from jaxprune.distill.terms import match as match
