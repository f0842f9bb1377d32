"""The restoration log `restore.jsonl`: a `ledger.Ledger` of one line an image, which says what became of it and why.

Beside that a line holds what decides whether the image has to be restored again: `settings` is a digest of the
pipeline, of the options and of the contents of references and ground truth, `input` and `written` are the files'
facts, of which `output_bytes` is the sum.
"""

RESTORATION_LOG = "restore.jsonl"
