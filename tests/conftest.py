"""Strict JAX for every test: shapes checked against their annotations, no implicit rank promotion."""

import jax
from jaxtyping import install_import_hook

jax.config.update("jax_numpy_rank_promotion", "raise")

install_import_hook("jaxdp", "numeric_tower.check")
