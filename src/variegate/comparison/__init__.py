"""Recipes side by side: plan the runs of a comparison, share what they can share, read their results, say who won.

No stage: it calls `api.run` for every run and reads the run folders afterwards.
"""
