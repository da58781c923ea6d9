"""Where images come from: folders, lists, archives, buckets, the Hub and the web. Each is listed, located and read."""
