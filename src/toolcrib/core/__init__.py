"""Foundations without product words: database, identity, secrets, outbound HTTP, logs."""
