"""Which representation the routed experts read, and which experts there are: choices that change the model."""
