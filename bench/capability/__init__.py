"""The capability engine: a mock, a call as it is and a call that is mapped, by REST and as tools, in one process.

All doors lead to the same upstream, beside nginx and the bare relay; the rounds take turns. `ships.yaml` is what is
served, `ship.py` the document behind it.
"""
