"""Requests through a deployment: arrivals, a router, replicas as state machines, and a heap that moves time."""
