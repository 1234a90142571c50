"""Who may ask, what was used and what it costs: keys, prices, the ledger, and meters that survive a kill."""

from deepwell.accounts.clock import Clock
from deepwell.accounts.database import Database, open_database
from deepwell.accounts.keys import Key, Keys, Limits
from deepwell.accounts.ledger import Balance, Ledger, Movement, Row
from deepwell.accounts.meter import Meter
from deepwell.accounts.platform import Caller, Platform, recover
from deepwell.accounts.prices import Prices

__all__ = [
    "Balance",
    "Caller",
    "Clock",
    "Database",
    "Key",
    "Keys",
    "Ledger",
    "Limits",
    "Meter",
    "Movement",
    "Platform",
    "Prices",
    "Row",
    "open_database",
    "recover",
]
