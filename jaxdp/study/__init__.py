"""The study of dynamic against fixed privacy parameters at equal epsilon: `jaxdp study`.

`trials` trains, `attacks` attacks, `published` accounts; `records` collects what they leave; `findings`
computes on what was collected, and `page` writes it down.
"""
