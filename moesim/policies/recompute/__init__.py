"""What is computed again in the backward pass rather than kept from the forward pass."""
