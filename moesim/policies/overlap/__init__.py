"""How a schedule is rearranged so that communication hides behind computing."""
