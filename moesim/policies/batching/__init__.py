"""Which waiting requests join a replica's batch."""
