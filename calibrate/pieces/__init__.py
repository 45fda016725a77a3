"""The timed pieces: plain torch functions, and for each a case that makes its inputs ready apart from the timed call.

The layers that are run beside predictions are composed from these same functions. Each file holds the functions first
and the cases after them. torch, NumPy and the standard library only, so that a bare machine can run them.
"""
