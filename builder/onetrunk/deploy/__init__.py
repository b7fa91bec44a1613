"""Changing what a running server serves, one head at a time: add, update, try beside the live one, roll back, remove.

Every change goes the same way (``change.py``): the new files are brought in, which touches nothing that is served; the
server loads them; an ensemble under another name proves the whole of what is to come; then the ensembles are
switched, on disk and on the server, and asked again. The repository on disk is the truth: what a deployment that
died left undone, the next one finishes, and a server that starts anew serves what the files say.
"""
