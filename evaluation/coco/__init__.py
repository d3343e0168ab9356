"""COCO's average precision by the programs that define it."""
