"""The dynamic programme: the grants of greatest value over a whole tree, exactly.

    value   what each candidate grant is worth, in integers
    dense   rows of best values by capacity, and the choice that reaches them
    tree    children before parents, for every root and resource

Knows nothing of plans, steps or safety: core.verify is a second opinion that never looks here.
"""
