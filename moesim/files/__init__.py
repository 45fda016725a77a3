"""Everything that is read and written."""
