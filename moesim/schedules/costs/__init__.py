"""The cost forms, each beside its floor, and the pricing of whole schedules."""
