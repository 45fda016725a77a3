"""What changes while a pool runs, in answer to what was seen."""
