"""beartype as jaxtyping's import hook calls it: an int passes where a float is asked for, as PEP
484 has it.
"""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
