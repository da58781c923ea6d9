"""Sources of images: folders, lists, archives, buckets, the Hub and the web. Each is listed, located and read."""
