"""Attacks along training and noise: `jaxdp attack`."""
