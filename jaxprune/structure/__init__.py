"""Structural pruning: units are removed and the arrays really shrink. `plan`, `importance`,
`budget`, `shrink`.
"""
