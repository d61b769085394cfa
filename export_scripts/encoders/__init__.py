"""Plain traceable encoders made from the weights of eager originals; one file a family.

They compute what the originals compute, without what keeps those from tracing well: no device constant in the
graph, no shape baked in, pooling, projection, rescaling and normalising inside. That they do is not assumed:
`export_scripts.publish` compares every traced encoder with its untouched original.

`layers` is what they are made of, `towers` what a family file says of its originals, and `supported` finds
the families: what a file here calls FAMILY.
"""
