"""Which resident expert leaves when another one has to come in."""
