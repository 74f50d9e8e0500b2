"""The commands of `jaxdp`: each module has a frozen dataclass `Config` and a function `run(config)`."""
