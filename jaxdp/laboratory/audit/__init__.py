"""Lower bounds on epsilon, measured from the outside: `jaxdp audit`."""
