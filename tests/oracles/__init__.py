"""The upstreams as oracles, one file for each kind of network. `cases.py` says what a case is."""
