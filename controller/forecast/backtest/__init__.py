"""Forecasts replayed over recorded traces, beside peers, with proper scores.

Reads traces (`traces`), keeps what must stay apart apart (`split`), steps predictors through time
in order (`run`), scores them (`scores`),
knows the peers (`peers`, `recorded`), tells it (`report`, `plot`).
Decides nothing, trains nothing, and nothing that runs a fleet imports it.
"""
