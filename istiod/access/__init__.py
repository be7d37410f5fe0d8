"""Who may serve what, and who may do nothing any more: grants, revocations, evictions.

`facts` holds them as one value and decides; `records` keeps them in the registry; `group` makes grants of WorkloadGroups.
"""
