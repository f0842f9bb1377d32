"""The why-log `restore.jsonl`: a `ledger.Ledger` of one line a picture, which says what became of it and why.

Beside that a line holds what decides whether the picture has to be restored again: `settings` is a digest of the
pipeline, of the options and of the contents of references and ground truth, `input` and `written` are the files'
facts, of which `output_bytes` is the sum.
"""

WHY_LOG = "restore.jsonl"
