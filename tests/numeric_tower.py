"""The run-time type checker of the tests: beartype, with int accepted where float is annotated (PEP 484)."""

import beartype

check = beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))
