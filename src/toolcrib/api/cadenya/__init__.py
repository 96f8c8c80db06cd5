"""The Cadenya dialect: tool sets and tools as `{metadata, spec, info}`, cursor pages, google.rpc.Status errors.

Two editions share every route: the published one at `/v1/tool_sets`, and the one that later client libraries speak at
`/v1/workspaces/{workspace}/tool_sets` (PATCH beside PUT, `type` tags on unions, camel-case event types, `state`).
"""
