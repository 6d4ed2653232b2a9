"""The dynamic programme: the grants of greatest value over a whole tree, exactly.

    problem   what the solvers take and give: batches of hosts, forests of machines
    solve     many flat hosts: block -> concave, or bound -> exchange -> search -> windows
    tree      nested hosts, jointly: pack, rows upwards, solve downwards
    certify   what a solution claims, recomputed; resolve: a new solution where little changed
    grants    the allocation of a snapshot; value: what each candidate grant is worth
    coupled   several resources at once, where they share a cost: coupled_problem, coupled_bound
              with coupled_master, coupled_core, coupled_search with coupled_pairs;
              coupled_flavours makes such problems from single resources
    instance  problems from files, by instance_nodes and instance_values, with answer, whatif and
              relax; coupled_forest, coupled_answer, coupled_whatif where capacities are lists

Knows nothing of plans, steps or safety: core.verify is a second opinion that never looks here.
"""
