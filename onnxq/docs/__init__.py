"""The pages of onnxq, and the writer of those that are generated from the code.

``python -m onnxq.docs`` writes ``reference.md`` and ``schemas/*.json`` anew. Nothing else imports this package.
"""
