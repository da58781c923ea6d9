"""The work of an extraction: workers take shards, read their images, embed them, and publish the results."""
