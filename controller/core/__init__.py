"""Decisions as functions of frozen values: bins, allocation, plan, verification.

Sees numpy and shared values only: no clock, log, random source, network or file.
"""
