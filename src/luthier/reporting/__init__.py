"""What people look at: pages and text, made from values that were found elsewhere."""
