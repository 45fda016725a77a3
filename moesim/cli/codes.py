"""Exit codes: every target is met; none can be met; the input is wrong."""

MET, MISSED, BAD_INPUT = 0, 1, 2
