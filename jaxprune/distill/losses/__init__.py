"""Distillation losses: pure functions of arrays, one value an example.

    NAME(student, teacher, *, …, mask=None) -> (examples,)

Sums are float32; what the mask leaves out counts nothing, whatever it holds; `masked_mean` makes
one number. What compares the examples of a batch sees the global batch under `jit`, so no loss
depends on the number of devices.
"""

from jaxprune.distill.losses.activations import activation_boundary as activation_boundary
from jaxprune.distill.losses.activations import overhaul as overhaul
from jaxprune.distill.losses.activations import overhaul_margin as overhaul_margin
from jaxprune.distill.losses.activations import vid as vid
from jaxprune.distill.losses.activations import vid_raw_variance as vid_raw_variance
from jaxprune.distill.losses.common import masked_mean as masked_mean
from jaxprune.distill.losses.contrastive import CRDBank as CRDBank
from jaxprune.distill.losses.contrastive import crd as crd
from jaxprune.distill.losses.contrastive import crd_init as crd_init
from jaxprune.distill.losses.contrastive import crd_negatives as crd_negatives
from jaxprune.distill.losses.contrastive import crd_update as crd_update
from jaxprune.distill.losses.decoupled import TopK as TopK
from jaxprune.distill.losses.decoupled import dist as dist
from jaxprune.distill.losses.decoupled import dkd as dkd
from jaxprune.distill.losses.decoupled import standardise as standardise
from jaxprune.distill.losses.decoupled import standardised_targets as standardised_targets
from jaxprune.distill.losses.decoupled import top_k as top_k
from jaxprune.distill.losses.decoupled import top_k_teacher as top_k_teacher
from jaxprune.distill.losses.features import attention_transfer as attention_transfer
from jaxprune.distill.losses.features import fsp as fsp
from jaxprune.distill.losses.features import hidden_cosine as hidden_cosine
from jaxprune.distill.losses.features import hidden_mse as hidden_mse
from jaxprune.distill.losses.features import hint as hint
from jaxprune.distill.losses.features import nst as nst
from jaxprune.distill.losses.generator import activation_magnitude as activation_magnitude
from jaxprune.distill.losses.generator import batch_norm_matching as batch_norm_matching
from jaxprune.distill.losses.generator import information_entropy as information_entropy
from jaxprune.distill.losses.generator import one_hot as one_hot
from jaxprune.distill.losses.relations import correlation_congruence as correlation_congruence
from jaxprune.distill.losses.relations import pkt as pkt
from jaxprune.distill.losses.relations import rkd_angle as rkd_angle
from jaxprune.distill.losses.relations import rkd_distance as rkd_distance
from jaxprune.distill.losses.relations import similarity_preserving as similarity_preserving
from jaxprune.distill.losses.schemes import born_again as born_again
from jaxprune.distill.losses.schemes import born_again_confidence as born_again_confidence
from jaxprune.distill.losses.schemes import born_again_permuted as born_again_permuted
from jaxprune.distill.losses.schemes import deep_mutual as deep_mutual
from jaxprune.distill.losses.schemes import dino as dino
from jaxprune.distill.losses.schemes import dino_centre as dino_centre
from jaxprune.distill.losses.soft import forward_kl as forward_kl
from jaxprune.distill.losses.soft import jsd as jsd
from jaxprune.distill.losses.soft import logit_mse as logit_mse
from jaxprune.distill.losses.soft import reverse_kl as reverse_kl
from jaxprune.distill.losses.soft import soft_and_hard as soft_and_hard
from jaxprune.distill.losses.soft import soft_targets as soft_targets
