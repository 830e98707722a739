"""What a script or a notebook calls: loading, prediction, export."""
