"""The restoration log `restore.jsonl`: a `common.ledger.Ledger` with one line per image, its result and the reasons.

Further keys decide whether an image must be restored again: `settings` is a digest of the pipeline, of the options and
of the contents of references and ground truth; `input` and `written` are facts of the files (`ledger.facts_of`), and
`output_bytes` is the sum of the written ones.
"""

RESTORATION_LOG = "restore.jsonl"
