"""The study of dynamic against fixed privacy parameters at equal epsilon: `jaxdp study`.

`trials` trains, `attacks` attacks, `published` accounts; `collected` gathers what they leave; `claims` computes
on what was collected, and `page` writes it down.
"""
