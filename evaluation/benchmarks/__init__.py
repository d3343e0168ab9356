"""What scoring costs, beside straightforward ways of computing the same figures, on drawn data of realistic size.

python -m locap.evaluation.benchmarks panoptic | detection | panoptic_captioning | dense_captioning | meteor
    [--size small|val] [--repeats N] [--output result.json]

Every way runs in turn on the same data, in one process with one thread, so that noise strikes all alike; medians of
processor time are compared, Java's is counted apart, and the figures have to agree. The other ways are written here
from the protocols' definitions, except pycocotools, which is the library itself.
"""
