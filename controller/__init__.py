"""The controller: gathers telemetry, forecasts, decides, verifies, dispatches, audits.

Never imports the agent. Imports nothing here, so that the command line stays light.
"""
