"""Losses. Each returns a sum and what it must be divided by, so that any split over ranks gives the same loss."""
