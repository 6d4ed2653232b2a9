"""What agents and the controller say to each other, and how; knows neither side.

Values, units, wire formats, subjects, settings machinery, clocks and errors live here.
Decisions never do.
"""
