"""`python -m bench minilm`: the feed-forward layers of a pretrained encoder converted, and what that costs."""
