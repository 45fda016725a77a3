"""Ops and tasks that say what and how much, and the one pass that prices them."""
