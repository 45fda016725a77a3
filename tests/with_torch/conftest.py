"""These tests need torch, which planning never does: without it they are not collected (`make test-torch` adds it)."""

from importlib.util import find_spec

collect_ignore_glob = [] if find_spec("torch") else ["test_*.py"]
