"""Events to write down, and the key that signs for them."""

from consortium.signing import new_ledger_key

KEY = new_ledger_key()


def happened(number: int) -> dict[str, object]:
    return {"kind": "Happened", "number": number, "share": 0.1 * number, "word": "Ljubljana čaka"}
