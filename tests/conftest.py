"""What all tests share: property tests draw the same examples every time, and are never failed by a slow machine."""

import pytest
from hypothesis import settings

settings.register_profile("moesim", derandomize=True, deadline=None)
settings.load_profile("moesim")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the figures that tests recorded, also when they ran in worker processes."""
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            if name == "figures":
                terminalreporter.write_line(f"{report.nodeid}\n{value}")
