"""Everything resident: each rank keeps all of its expert slots on the gpu."""


def policy(slots: int) -> int:
    """Keep them all."""
    return slots
