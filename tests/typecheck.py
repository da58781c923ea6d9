"""The type checker of the tests: beartype, with int taken where float is wanted, as Python's typing has it."""

from beartype import BeartypeConf, beartype

typechecked = beartype(conf=BeartypeConf(is_pep484_tower=True))
