"""What both sides must agree on, bit for bit: ids, jobs, manifests, deltas, store, transfer, merging.

Membership rule: a module belongs here only if coordinator and site agents would break apart
when it changed on one side alone.
"""
