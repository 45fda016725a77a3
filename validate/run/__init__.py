"""Plans run on the machine at hand, and what was predicted for them set beside what was measured.

`planning` chooses plans and predicts them, `bundle` keeps both as files, `execute` runs a bundle, `scores` and `page`
compare. What runs a bundle needs torch, NumPy and the standard library only, so that a bare machine can do it.
"""
