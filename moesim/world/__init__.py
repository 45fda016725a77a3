"""What the world is like: hardware, model, workload and routing, grouped in a scenario."""
