"""How much a weight matters: params -> a tree of scores; the smallest go first.

    magnitude   |w|                    Janowsky 1989; Han et al. 2015, arXiv:1506.02626
    random      u ~ U[0, 1)            the control that every method must beat
    lamp        w² / Σ_{v² >= w²} v²   over the leaf: Lee et al. 2021, arXiv:2010.07611
    fpgm        Σⱼ ‖Fᵢ − Fⱼ‖           filters far from all others stay: He et al. 2019, 1811.00250
    saliency    |w·g|                  Mozer & Smolensky 1989; SNIP, 1810.02340; Taylor, 1611.06440
    movement    −Σₜ wₜ·gₜ              Sanh et al. 2020, arXiv:2005.07683
    fisher      ½ w²·E[g²]             LeCun et al. 1990; Theis et al. 2018, arXiv:1801.05787
    obd         ½ w²·max(h, 0)         h = diag ∇²L: LeCun et al. 1990; Yao et al., arXiv:2006.00719
    wanda       |w|·√E[x²]             x: what w is multiplied with: Sun et al. 2023, 2306.11695
    only        any of these, of some leaves: of scales of norms it is network slimming (Liu et al.
                2017, arXiv:1708.06519)

A score is a plain function of dense params (and of keyword-only extras that `init` and `update`
pass on), giving a tree of float arrays shaped like the params; None where a leaf has no score.
Scores never prune.
"""

from jaxprune.methods.scores.filters import fpgm as fpgm
from jaxprune.methods.scores.from_curvature import diagonal_fisher as diagonal_fisher
from jaxprune.methods.scores.from_curvature import fisher as fisher
from jaxprune.methods.scores.from_curvature import fisher_from as fisher_from
from jaxprune.methods.scores.from_curvature import obd as obd
from jaxprune.methods.scores.from_gradients import movement as movement
from jaxprune.methods.scores.from_gradients import saliency as saliency
from jaxprune.methods.scores.from_inputs import wanda as wanda
from jaxprune.methods.scores.from_weights import lamp as lamp
from jaxprune.methods.scores.from_weights import magnitude as magnitude
from jaxprune.methods.scores.from_weights import random as random
from jaxprune.methods.scores.only import only as only
from jaxprune.methods.scores.types import Score as Score
from jaxprune.methods.scores.words import BY_WORD as BY_WORD
from jaxprune.methods.scores.words import Word as Word
from jaxprune.methods.scores.words import from_words as from_words
