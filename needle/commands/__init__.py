"""What the commands of `needle` do, one function for each.

Next: shared.py.
"""
