"""What we may choose, and what may change while it runs."""
