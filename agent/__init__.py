"""The agent: reads a machine, publishes what it sees, carries out what it may, and guards the VMs.

Never imports the controller, and none of the libraries that only the controller installs.
"""
