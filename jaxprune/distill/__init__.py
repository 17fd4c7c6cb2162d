"""Distillation: a small network learns from a large one."""

from jaxprune.distill import losses as losses
from jaxprune.distill.diagnostics import disagreement as disagreement
from jaxprune.distill.terms import Projection as Projection
from jaxprune.distill.terms import Term as Term
from jaxprune.distill.terms import match as match
