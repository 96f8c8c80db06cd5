"""Where tools come from, and what happens on a call."""
