"""Forecasts of demand as probabilities. Gives quantiles; decides nothing, moves nothing."""
