"""Folders of pictures, and the table of their embeddings: what search and bulk jobs have in common.

Needs LanceDB for the table alone; the rest runs in every environment.
"""
