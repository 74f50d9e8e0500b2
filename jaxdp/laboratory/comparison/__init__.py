"""Every variant at the same epsilon: `jaxdp compare`."""
