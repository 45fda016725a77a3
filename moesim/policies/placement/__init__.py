"""Which slot holds a copy of which expert."""
