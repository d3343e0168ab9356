"""The world behind the embedded data set: scenes, their pictures and what is said about them."""
