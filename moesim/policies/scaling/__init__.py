"""How many replicas are on."""
