"""Many plans: the frontier, and the proof that nothing in the space is estimated better."""
