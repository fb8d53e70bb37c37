"""A number as models write it."""

NUMBER = r"[-+]?+(?:[0-9]++(?:\.[0-9]*+)?+|\.[0-9]++)(?:[eE][-+]?+[0-9]++)?+"
"""Pattern of a decimal number. Every quantifier is possessive: no backtracking, whatever the text."""
