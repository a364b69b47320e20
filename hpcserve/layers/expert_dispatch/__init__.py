"""How tokens of replicas that share experts come to these and back: one way per file.

The names of its modules, each with an `EntryClass`, are the choices of `--moe-dispatch`.
"""
