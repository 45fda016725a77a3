"""Which experts are copied in before the gate has chosen them."""
