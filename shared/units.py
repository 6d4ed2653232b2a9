"""Units of time as integers, apart from clocks so that pure modules can have them."""

SECOND_NS = 1_000_000_000
MILLISECOND_NS = 1_000_000
