"""Distillation: a small network learns from a large one."""

from jaxprune.distill import losses as losses
from jaxprune.distill.diagnostics import disagreement as disagreement
from jaxprune.distill.matching import Projection as Projection
from jaxprune.distill.matching import Stateful as Stateful
from jaxprune.distill.networks import Network as Network
from jaxprune.distill.networks import Parts as Parts
from jaxprune.distill.networks import linen as linen
from jaxprune.distill.networks import nnx as nnx
from jaxprune.distill.networks import plain as plain
from jaxprune.distill.remembering import crd_loss as crd_loss
from jaxprune.distill.remembering import dino_loss as dino_loss
from jaxprune.distill.remembering import vid_loss as vid_loss
from jaxprune.distill.step import Distiller as Distiller
from jaxprune.distill.step import State as State
from jaxprune.distill.step import distiller as distiller
from jaxprune.distill.teachers import Averaged as Averaged
from jaxprune.distill.teachers import Ensemble as Ensemble
from jaxprune.distill.teachers import Given as Given
from jaxprune.distill.teachers import Itself as Itself
from jaxprune.distill.teachers import Online as Online
from jaxprune.distill.teachers import averaged as averaged
from jaxprune.distill.terms import Term as Term
from jaxprune.distill.terms import match as match
