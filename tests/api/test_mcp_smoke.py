async def test_lists_no_tools_at_first(crib):
    assert (await crib.rpc("tools/list"))["result"]["tools"] == []
