"""One pass: how it is lowered to a schedule, whether it fits, and the two executors that time it."""
