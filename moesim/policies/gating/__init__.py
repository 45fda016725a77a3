"""How many rows each expert computes for the tokens routed to it."""
