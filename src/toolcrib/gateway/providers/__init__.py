"""How a tool is run, by kind of upstream."""
