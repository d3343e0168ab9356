"""What loading costs: images a second, bytes a batch and memory of loader processes, beside a straightforward loader.

python -m locap.datasets.benchmarks loading [--crop PIXELS] [--coco FOLDER] [--workers N]
python -m locap.datasets.benchmarks memory [--records N]
    [--output result.json]

Both loaders read the same files with the same augmentation, in turns, so that noise strikes both alike, and what they
deliver is compared. The straightforward one is written as such loaders commonly are: a list of dictionaries, copied
deeply for each sample, and one boolean mask per segment, sent to the training process.
"""
