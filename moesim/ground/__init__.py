"""What everything stands on: units, errors, named random streams and the clock."""
