"""Which replica a request is sent to."""
