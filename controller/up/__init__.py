"""What `hrapaq up` starts: a bus, a controller, an agent, demo guests.

Knows processes and screens, decides nothing.
"""
