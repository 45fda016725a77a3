"""The architectures of Hugging Face configurations: one record of fields each, and how its layers follow."""
