"""The document that the upstream answers, some 2 KB, and what `ships.yaml` makes of it."""

import json
from typing import Any

_PORTS = ("Oslo", "Rotterdam", "Lisbon", "Antwerp", "Gdansk", "Bergen")
_SHIP: dict[str, Any] = {
    "imo_number": "9321483",
    "vessel_name": "Northern Star",
    "status": "active",
    "flag": {"code": "NO", "country": "Norway", "since": "2009-03-14"},
    "classification": {"type": "cargo", "society": "DNV", "class": "1A1 General cargo carrier", "ice": "1B"},
    "dimensions": {"length_m": 158.4, "beam_m": 23.1, "draught_m": 9.2, "gross_tonnage": 21042, "deadweight": 28650},
    "ownership": {
        "owner": {"name": "Fjord Shipping AS", "address": "Strandgata 19, 5004 Bergen, Norway", "since": "2016-11-01"},
        "operator": {"name": "Nordic Bulk Operations", "address": "Havnegata 7, 0150 Oslo, Norway", "fleet": 42},
    },
    "voyages": [
        {"port": port, "arrived_at": f"2026-0{i + 1}-11T06:30:00Z", "berth": f"Q{i + 4}", "cargo_t": 11250.5 + i}
        for i, port in enumerate(_PORTS)
    ],
    "inspections": [
        {"date": f"202{i}-05-17", "authority": "Paris MoU", "deficiencies": i, "detained": False, "port": _PORTS[i]}
        for i in range(5)
    ],
    "certificates": [
        {"name": name, "number": f"DNV-2024-{10_455 + i}", "valid_until": "2028-12-31"}
        for i, name in enumerate(("Safety construction", "Load line", "Safety management", "Oil pollution prevention"))
    ],
}
SHIP = json.dumps(_SHIP, separators=(",", ":")).encode()
SUMMARY = json.dumps(
    {
        "imo": "9321483",
        "name": "Northern Star",
        "flag": "NO",
        "type": "cargo",
        "tonnage": 21042,
        "length": 158.4,
        "owner": "Fjord Shipping AS",
        "lastPort": "Oslo",
        "inspections": ["2020-05-17", "2021-05-17", "2022-05-17", "2023-05-17", "2024-05-17"],
        "status": "active",
    },
    separators=(",", ":"),
).encode()
MOCK = b'{"imo":"9321483","name":"Northern Star","flag":"NO","tonnage":21042,"active":true}'
