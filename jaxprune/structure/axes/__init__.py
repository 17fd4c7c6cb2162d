"""Which axes of a function's arrays must be cut together, and the function run on what is left of
them.

Read in this order: `index` (what an axis indexes), `masks` (what is kept of it), `walk` and the
rules it calls (`shapes`, `contractions`, `indexing`, `control`), `zeros` (when is cutting exact),
`narrow` (the function on smaller arrays), `groups` (what a person sees of all that).
"""
