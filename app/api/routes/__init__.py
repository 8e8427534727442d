"""One router per noun of the public API."""
