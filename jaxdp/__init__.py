"""Deep learning that withstands gradient leakage, in JAX."""

__version__ = "0.1.0"
