"""What all figures and tables share: the view of a store, tables, captions, looks, and the one judge."""
