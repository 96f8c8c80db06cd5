"""The Orkosi dialect: `{data}` and `{data, meta}` envelopes, `{error: {code, message}}`, limit and offset."""
