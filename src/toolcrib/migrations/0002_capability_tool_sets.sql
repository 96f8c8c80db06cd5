-- Tool sets whose tools come from a capability file.
ALTER TABLE tool_set DROP CONSTRAINT tool_set_kind_check;
ALTER TABLE tool_set ADD CONSTRAINT tool_set_kind_check CHECK (kind IN ('http', 'mcp', 'capability'));
