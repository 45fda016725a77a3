"""End-to-end serving measurements beside what moesim predicts for them."""
