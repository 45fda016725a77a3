"""From a pass to a deployment: by formula, event by event, and the best any policy could have done."""
