"""The lease queue: its rules, what can run, who runs it, and what time does to it."""
