"""The rules of the product, with their SQL; one noun a file. Knows no dialect."""
