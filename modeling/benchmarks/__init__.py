"""What Pix2Cap costs: counted work, processor time and memory, beside the published code's way of doing the same.

python -m locap.modeling.benchmarks inference --overrides MODEL.TEXT.PRETRAINED_TOKENIZER <folder>
python -m locap.modeling.benchmarks captioner | class_texts | training_step | deformable_encoder [--size tiny]
    [--output result.json]
"""
