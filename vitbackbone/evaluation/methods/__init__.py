"""The steps of protocols: photos to inputs, features to answers. Pure functions, one idea a file."""
