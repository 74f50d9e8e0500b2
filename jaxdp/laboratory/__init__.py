"""What `jaxdp attack, audit, compare, report` and `study` do."""
