"""Real mixture-of-experts layers in torch, composed from the pieces that `calibrate` times: one for every policy.

`spec` says what a layer is, `building` makes it, `reference` computes the same function in the plainest way. torch,
NumPy and the standard library are enough to run them; what they share with the simulator imports NumPy at most.
"""

from . import _shapes as _shapes  # before anything of moesim that names shapes
