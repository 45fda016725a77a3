"""Set predictions beside published and measured runs."""
