"""What a policy does to a schedule, a placement or a layout: one folder a kind, one file a policy."""
