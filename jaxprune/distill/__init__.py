"""Distillation: a small network learns from a large one."""

from jaxprune.distill import losses as losses
from jaxprune.distill.diagnostics import disagreement as disagreement
